"""From runs to comparable rows: seeds are averaged, rows are set against ``standard``."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from dwsep_zoo.report.results import Conditions, Run

REFERENCE = "standard"
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """A quantity measured in several runs."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (divided by n - 1); ``None`` for one value."""
        return statistics.stdev(self.values) if self.n > 1 else None


@dataclass(frozen=True)
class Row:
    """The runs of one network, which differ in nothing but the seed.

    Attributes:
        reference: the ``standard`` row of the same model, width and output stride (itself, if it is
            that row); ``None`` if there is none.
    """

    runs: tuple[Run, ...]
    reference: Row | None = None

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def is_reference(self) -> bool:
        return self.reference is not None and self.reference.first is self.first

    @property
    def network(self) -> tuple[Any, ...]:
        """What ``standard`` and its rivals have in common."""
        return self.first.model, self.first.width_mult, self.first.output_stride

    @cached_property
    def accuracy(self) -> Sample | None:
        """Test accuracy, 0-1."""
        return self._sample(lambda run: run.accuracy)

    @cached_property
    def train_s(self) -> Sample | None:
        """Seconds of training; ``None`` also if the runs come from different machines."""
        return self._sample(lambda run: run.train_s) if self.machine is not None else None

    @cached_property
    def images_per_second(self) -> Sample | None:
        return self._sample(lambda run: run.images_per_second) if self.machine is not None else None

    @property
    def machine(self) -> str | None:
        """What trained all of the runs; ``None`` if there were several."""
        machines = {run.machine for run in self.runs}
        return machines.pop() if len(machines) == 1 else None

    def latency(self, conditions: Conditions) -> float | None:
        """Milliseconds: the median over the runs of their medians."""
        sample = self._sample(lambda run: run.latency.get(conditions))
        return sample.median if sample else None

    @property
    def accuracy_difference(self) -> float | None:
        """To the reference, 0-1."""
        return self._against(lambda row: _mean(row.accuracy), lambda a, b: a - b)

    @property
    def params_ratio(self) -> float | None:
        return self._against(lambda row: row.first.params, _divide)

    @property
    def macs_ratio(self) -> float | None:
        return self._against(lambda row: row.first.macs, _divide)

    @property
    def train_ratio(self) -> float | None:
        """``None`` also if the reference was trained on another machine."""
        if self.reference is None or self.reference.machine != self.machine:
            return None
        return self._against(lambda row: _mean(row.train_s), _divide)

    def latency_ratio(self, conditions: Conditions) -> float | None:
        return self._against(lambda row: row.latency(conditions), _divide)

    def _sample(self, value: Callable[[Run], float | None]) -> Sample | None:
        values = tuple(v for run in self.runs if (v := value(run)) is not None)
        return Sample(values) if values else None

    def _against(
        self,
        value: Callable[[Row], float | None],
        compare: Callable[[float, float], float | None],
    ) -> float | None:
        if self.reference is None:
            return None
        own, other = value(self), value(self.reference)
        return None if own is None or other is None else compare(own, other)


@dataclass(frozen=True)
class Table:
    """Rows that may be compared: equal data, input size and recipe.

    Attributes:
        rows: by model, width and output stride; ``standard`` first.
        distinction: the settings in which this table differs from the other tables.
    """

    rows: tuple[Row, ...]
    distinction: tuple[tuple[str, str], ...] = ()

    @property
    def setting(self) -> dict[str, str]:
        return dict(self.rows[0].first.setting)

    @cached_property
    def conditions(self) -> tuple[Conditions, ...]:
        """Of all latencies, those that most rows have first."""
        number: dict[Conditions, int] = defaultdict(int)
        for row in self.rows:
            for conditions in dict.fromkeys(c for run in row.runs for c in run.latency):
                number[conditions] += 1
        return tuple(sorted(number, key=lambda c: -number[c]))

    def values(self, of: Callable[[Row], T]) -> list[T]:
        """The distinct values of a property, in the order of the rows."""
        return list(dict.fromkeys(of(row) for row in self.rows))


def make_tables(runs: Iterable[Run]) -> tuple[list[Table], list[Run]]:
    """Group finished runs.

    Returns:
        The tables, one for each setting in the order of their first runs; and the runs that were
        repeated later with the same seed, which are in no table.
    """
    settings = _group(sorted(runs, key=lambda run: str(run.folder)), lambda run: run.setting)
    distinctions = _distinctions(list(settings))
    tables, repeated = [], []
    for (_, members), distinction in zip(settings.items(), distinctions, strict=True):
        latest, older = _latest(members)
        repeated += older
        tables.append(Table(_rows(latest), distinction))
    return tables, repeated


def _identity(run: Run) -> tuple[Any, ...]:
    # The counts tell apart networks of one name that different versions of the code have built.
    network = (run.model, run.width_mult, run.output_stride)
    return *network, run.conv, run.conv_options, run.params, run.macs


def _latest(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The last run of each network and seed, and the others; a repetition is no second sample."""
    groups = _group(runs, lambda run: (*_identity(run), run.seed))
    latest = [max(group, key=lambda run: run.finished) for group in groups.values()]
    return latest, [run for run in runs if run not in latest]


def _rows(runs: Sequence[Run]) -> tuple[Row, ...]:
    groups = _group(runs, _identity).values()
    rows = [Row(tuple(sorted(group, key=lambda run: run.seed or 0))) for group in groups]
    references = {row.network: row for row in rows if row.first.conv == REFERENCE}
    rows = [Row(row.runs, references.get(row.network)) for row in rows]
    return tuple(sorted(rows, key=_order))


def _order(row: Row) -> tuple[Any, ...]:
    run = row.first
    network = (run.model, run.width_mult or 0, run.output_stride or 0)
    return *network, run.conv != REFERENCE, run.conv, run.macs or 0, run.conv_options


def _distinctions(settings: list[tuple[tuple[str, str], ...]]) -> list[tuple[tuple[str, str], ...]]:
    """For each setting, its values of the keys that are not equal in all settings."""
    dicts = [dict(setting) for setting in settings]
    keys = sorted({key for setting in dicts for key in setting})
    differ = [key for key in keys if len({setting.get(key) for setting in dicts}) > 1]
    return [tuple((key, setting.get(key, "null")) for key in differ) for setting in dicts]


def _group(runs: Iterable[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    groups: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return groups


def _mean(sample: Sample | None) -> float | None:
    return sample.mean if sample else None


def _divide(a: float, b: float) -> float | None:
    return a / b if b else None
