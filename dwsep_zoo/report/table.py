"""Tables of comparable rows: seeds are averaged, rows are set against a reference."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.report.labels import Label, grouped, labels
from dwsep_zoo.report.predictions import Predictions
from dwsep_zoo.report.results import Run
from dwsep_zoo.report.statistics import Paired, Sample, paired
from dwsep_zoo.schema.measures import LATENCY, TEST_ACC, Measure
from dwsep_zoo.schema.record import Conditions, LatencyRecord, Match, RunRecord

REFERENCE = "standard"
NONE = "none"
T = TypeVar("T")


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:g}"


# Fields that order, group and filter rows.
FIELDS: dict[str, Callable[[Run], tuple[str, ...]]] = {
    "model": lambda run: (run.model,),
    "conv": lambda run: (run.conv,),
    "width_mult": lambda run: (_plain(run.record.width_mult),),
    "output_stride": lambda run: (_plain(run.record.output_stride),),
    "match": lambda run: (run.record.match.quantity if run.record.match else NONE,),
    "teacher": lambda run: run.teacher or (NONE,),
    "seed": lambda run: (_plain(run.record.seed),),
    "format": lambda run: (run.form or NONE,),
    "data": lambda run: (dict(run.setting).get("data.name", NONE),),
    "tags": lambda run: run.tags or (NONE,),
}
ORDER = (
    "model",
    "width_mult",
    "output_stride",
    "conv",
    "match",
    "teacher",
    "format",
    "tags",
)  # a table has one data


@dataclass(frozen=True)
class Options:
    """Order, filter and reference of the rows.

    Attributes:
        by: names of ``ORDER`` that rows are ordered by; the first of them parts the groups.
        reference: a conv type, that of the same network is each row's reference; or
            ``model/conv``, one reference for all rows. A row whose width was solved for is always
            set against the network whose budget it was given, and one with a teacher against the
            same network without, if there is one.
        where: names of ``FIELDS`` and the values that are let through.
    """

    by: tuple[str, ...] = ("model",)
    reference: str = REFERENCE
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.by:
            raise UserError("by= names no field; choices: " + ", ".join(ORDER))
        for name in self.by:
            choose(name, ORDER, "field of by")
        for name in self.where:
            choose(name, FIELDS, "field to filter by")


@dataclass(frozen=True)
class Row:
    """The runs of one network, which differ in nothing but the seed.

    Attributes:
        reference: the row that this one is set against (itself, if it is one); ``None`` if there is
            none.
        ambiguous: several rows that could all be the reference, which then is ``None``.
    """

    runs: tuple[Run, ...]
    reference: Row | None = None
    ambiguous: tuple[Row, ...] = ()

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def record(self) -> RunRecord:
        """The record of the first run."""
        return self.runs[0].record

    @property
    def is_reference(self) -> bool:
        return self.reference is not None and self.reference.first is self.first

    @property
    def network(self) -> tuple[str, float | None, int | None]:
        """Model, width as given and output stride, which a reference shares with its rivals."""
        width = self.first.width_given if self.record.match else self.record.width_mult
        return self.record.model, width, self.record.output_stride

    @property
    def match(self) -> Match | None:
        """The budget that the width was solved for; the worst residual of several seeds."""
        matches = [run.record.match for run in self.runs if run.record.match]
        return max(matches, key=lambda match: abs(match.residual)) if matches else None

    @property
    def machine(self) -> str | None:
        """The machine that trained all of the runs; ``None`` if they differ."""
        machines = {run.machine for run in self.runs}
        return machines.pop() if len(machines) == 1 else None

    @cached_property
    def accuracy(self) -> Sample | None:
        """Test accuracy, 0-1."""
        return self.sample(TEST_ACC)

    def sample(self, measure: Measure) -> Sample | None:
        """A measure from 0 to 1 over the runs; ``None`` if none has it."""
        values = self.values(measure)
        return Sample.of(values, 0.0, 1.0) if values else None

    def values(self, measure: Measure) -> list[float]:
        """The values of the runs; none for durations on different machines."""
        if measure.over_seeds == "mean" and self.machine is None:
            return []
        found = (measure.value(run.record) for run in self.runs)
        return [value for value in found if value is not None]

    def value(self, measure: Measure) -> float | None:
        """The first, mean or median value over the runs, as the measure wants it."""
        if measure.over_seeds == "first":
            return measure.value(self.record)
        values = self.values(measure)
        average = statistics.fmean if measure.over_seeds == "mean" else statistics.median
        return average(values) if values else None

    def ratio(self, measure: Measure) -> float | None:
        """The value over the reference's; ``None`` also for durations on different machines."""
        if self.reference is None or not measure.ratio:
            return None
        if measure.over_seeds == "mean" and self.reference.machine != self.machine:
            return None
        own, other = self.value(measure), self.reference.value(measure)
        return own / other if own is not None and other else None

    def latency(self, conditions: Conditions, percentile: str = "p50") -> float | None:
        """Milliseconds: the median over the runs of their ``p10``, ``p50`` or ``p90``."""
        found = (getattr(entry, f"{percentile}_ms") for entry in self._latencies(conditions))
        values = [value for value in found if value is not None]
        return statistics.median(values) if values else None

    def latency_ratio(self, conditions: Conditions) -> float | None:
        return self.ratio(LATENCY.under(conditions))

    def stable(self, conditions: Conditions) -> bool | None:
        """True if the times of all runs were steady; ``None`` if that was not recorded."""
        found = [entry.stable for entry in self._latencies(conditions)]
        return None if not found or None in found else all(found)

    def _latencies(self, conditions: Conditions) -> list[LatencyRecord]:
        found = (run.record.latency_under(conditions) for run in self.runs)
        return [entry for entry in found if entry]

    @property
    def measured_in_turns(self) -> bool:
        """True if all latencies of this row and its reference were measured together."""
        rows = (self, self.reference or self)
        turns = {run.record.in_turns for row in rows for run in row.runs if run.record.latency}
        return len(turns) == 1 and None not in turns

    @cached_property
    def paired(self) -> Paired | None:
        """Accuracy against the reference, seed by seed.

        ``None`` for the reference itself, without a reference, and without a common seed.
        """
        if self.reference is None or self.is_reference:
            return None
        return paired(
            self.reference._by_seed(lambda run: run.accuracy),
            self._by_seed(lambda run: run.accuracy),
            self.reference.predictions,
            self.predictions,
        )

    @cached_property
    def predictions(self) -> dict[int, Predictions]:
        """By seed, where there are any."""
        return self._by_seed(lambda run: run.predictions)

    @property
    def accuracy_difference(self) -> float | None:
        """To the reference, 0-1: the mean over the common seeds."""
        if self.is_reference:
            return 0.0 if self.accuracy else None
        return self.paired.mean if self.paired else None

    def _by_seed(self, value: Callable[[Run], T | None]) -> dict[int, T]:
        pairs = ((run.record.seed, value(run)) for run in self.runs)
        return {seed: v for seed, v in pairs if seed is not None and v is not None}


@dataclass(frozen=True)
class Table:
    """Rows that may be compared: equal data, input size and recipe.

    Attributes:
        rows: in the order of ``options.by``; references first among equals.
        distinction: the settings in which this table differs from the other tables.
    """

    rows: tuple[Row, ...]
    distinction: tuple[tuple[str, str], ...] = ()
    options: Options = field(default_factory=Options)

    @property
    def setting(self) -> dict[str, str]:
        return dict(self.rows[0].first.setting)

    @cached_property
    def labels(self) -> dict[Run, Label]:
        """The names of the rows by their first runs."""
        return labels(self.rows, tags="tags" in self.options.by)

    @cached_property
    def conditions(self) -> tuple[Conditions, ...]:
        """All conditions of latencies, those that most rows share first."""
        number: Counter[Conditions] = Counter()
        for row in self.rows:
            entries = (entry for run in row.runs for entry in run.record.latency)
            found = (entry.conditions for entry in entries if entry.p50_ms is not None)
            number.update(dict.fromkeys(found, 1))
        return tuple(conditions for conditions, _ in number.most_common())

    def key(self, name: str, row: Row) -> tuple[str, ...]:
        """The values of a row in one of ``FIELDS``."""
        return FIELDS[name](row.first)

    def values(self, of: Callable[[Row], T]) -> list[T]:
        """The distinct values of a property, in the order of the rows."""
        return list(dict.fromkeys(of(row) for row in self.rows))


def make_tables(
    runs: Iterable[Run], options: Options | None = None
) -> tuple[list[Table], list[Run]]:
    """Group finished runs.

    Returns:
        The tables, one for each setting in the order of their first runs; and the runs that were
        repeated later with the same seed, which are in no table.

    Raises:
        UserError: if no run is of the reference that ``options`` ask for.
    """
    options = options or Options()
    runs = sorted(runs, key=lambda run: str(run.folder))
    if runs and options.reference != REFERENCE:  # a missing "standard" is said below the table
        names = {name for run in runs for name in (run.conv, f"{run.model}/{run.conv}")}
        choose(options.reference, names, "reference")
    settings = grouped(runs, lambda run: run.setting)
    distinctions = _distinctions(list(settings))
    tables = []
    repeated: list[Run] = []
    for members, distinction in zip(settings.values(), distinctions, strict=True):
        latest = dict.fromkeys(_latest(members, options))
        repeated += (run for run in members if run not in latest)
        tables.append(Table(_rows(list(latest), options), distinction, options))
    return tables, repeated


def select(runs: Iterable[Run], where: Mapping[str, Sequence[str]]) -> list[Run]:
    """The runs that have one of the values of every field.

    A run that failed before it had recorded a field stays: no failure is dropped.

    Raises:
        UserError: for a value that no run has, among those that the fields before it let through.
    """
    runs = list(runs)
    for name, values in where.items():
        wanted = set(map(_normal, values))
        found = [(run, set(map(_normal, FIELDS[name](run)))) for run in runs]
        for value in wanted:
            choose(value, set().union(*(own for _, own in found)), name)
        runs = [
            run
            for run, own in found
            if own & wanted or (own == {NONE} and run.record.status != "finished")
        ]
    return runs


def _normal(text: str) -> str:
    """``1.0`` is ``1``, and ``null``, as it stands in a command line, is ``none``."""
    if text == "null":
        return NONE
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def _identity(run: Run, options: Options) -> tuple[object, ...]:
    """The key that averaged runs share."""
    match = run.record.match and (run.record.match.quantity, run.record.match.to, run.width_given)
    network = (run.model, run.record.width_mult, run.record.output_stride, match, run.searched)
    grouped = tuple(FIELDS[name](run) for name in options.by if name not in ("format", "teacher"))
    # The counts tell apart networks of one name that different versions of the code have built.
    counts = (run.record.params, run.record.macs)
    return run.form, run.taught, *network, run.conv, run.conv_options, *counts, grouped


def _latest(runs: Sequence[Run], options: Options) -> list[Run]:
    """The last run of each network and seed; a repetition is no second sample."""
    groups = grouped(runs, lambda run: (*_identity(run, options), run.record.seed))
    return [max(group, key=lambda run: run.record.finished or "") for group in groups.values()]


def _rows(runs: Sequence[Run], options: Options) -> tuple[Row, ...]:
    groups = grouped(runs, lambda run: _identity(run, options)).values()
    rows = [Row(tuple(sorted(group, key=lambda run: run.record.seed or 0))) for group in groups]
    find = _References(rows, options)
    found = [find(row) for row in rows]
    rows = [
        replace(row, reference=own[0]) if len(own) == 1 else replace(row, ambiguous=own)
        for row, own in zip(rows, found, strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: _order(row, options)))


class _References:
    """Finds the rows that a row can be set against."""

    def __init__(self, rows: Sequence[Row], options: Options):
        self.options = options
        trained = [row for row in rows if not row.first.form]
        self.trained = {_identity(row.first, options)[1:]: row for row in trained}
        untaught = [row for row in trained if not row.first.taught]
        self.untaught = {_identity(row.first, options)[2:]: row for row in untaught}
        unmatched = [row for row in untaught if row.match is None]
        self.far = grouped(unmatched, lambda row: (row.first.model, row.first.conv))
        self.near = grouped(unmatched, lambda row: (row.first.model, row.first.conv, row.network))

    def __call__(self, row: Row) -> tuple[Row, ...]:
        if row.first.form:  # a file is set against the network that it was made from
            own = self.trained.get(_identity(row.first, self.options)[1:])
            return (own,) if own else ()
        twin = self.untaught.get(_identity(row.first, self.options)[2:])
        if row.first.taught and twin:
            return (twin,)
        given, _, conv = self.options.reference.rpartition("/")
        if row.match:
            given, conv = "", row.match.to
        model = given or row.first.model
        network = (model, *row.network[1:])
        found = self.near.get((model, conv, network)) or []
        if given and not found:
            found = self.far.get((model, conv), [])
        if "tags" in self.options.by:
            found = [other for other in found if other.first.tags == row.first.tags] or found
        return (row,) if any(other is row for other in found) else tuple(found)


def _order(row: Row, options: Options) -> tuple[Any, ...]:
    run = row.first
    _, width, stride = row.network
    keys = {
        "model": run.model,
        "conv": (run.conv != options.reference.rpartition("/")[2], run.conv),
        "width_mult": width or 0,
        "output_stride": stride or 0,
        "match": run.record.match.quantity if run.record.match else "",
        "teacher": run.taught,
        "format": run.form,
        "tags": run.tags,
    }
    names = dict.fromkeys((*options.by, *ORDER))
    return *(keys[name] for name in names), run.record.macs or 0, run.conv_options, run.searched


def _distinctions(settings: list[tuple[tuple[str, str], ...]]) -> list[tuple[tuple[str, str], ...]]:
    """For each setting, its values of the keys that are not equal in all settings."""
    dicts = [dict(setting) for setting in settings]
    keys = sorted({key for setting in dicts for key in setting})
    differ = [key for key in keys if len({setting.get(key) for setting in dicts}) > 1]
    return [tuple((key, setting.get(key, "null")) for key in differ) for setting in dicts]
