"""The cells of a table, common to all formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dwsep_zoo.report.labels import MISSING, QUANTITIES, general
from dwsep_zoo.report.statistics import (
    Interval,
    McNemar,
    Paired,
    Sample,
    interval_text,
    points,
)
from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.schema.measures import BALANCED_ACC, TEST_ACC, Measure, measures
from dwsep_zoo.schema.record import Conditions, Match

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


@dataclass(frozen=True)
class Column:
    """A column of texts; words are aligned left, numbers right.

    Attributes:
        best: indices of the best cells, where one value is better than another.
    """

    heading: str
    cells: tuple[str, ...]
    is_number: bool = True
    best: tuple[int, ...] = ()


def columns(table: Table, *, dense: bool = False) -> list[Column]:
    """One line per row; width, output stride, budget and number of seeds only where they vary.

    Args:
        table: to be shown.
        dense: leave out the interval of the difference, which is also below the table.
    """
    rows = table.rows
    result = [
        Column("model", tuple(row.first.model for row in rows), is_number=False),
        Column("conv", tuple(conv_label(table, row) for row in rows), is_number=False),
    ]
    if len(table.values(lambda row: row.record.width_mult)) > 1:
        result.append(Column("width", tuple(general(row.record.width_mult) for row in rows)))
    if len(table.values(lambda row: row.record.output_stride)) > 1:
        result.append(Column("stride", tuple(general(row.record.output_stride) for row in rows)))
    if any(row.match for row in rows):
        result.append(Column("matched", tuple(match_text(row.match) for row in rows)))
    if any(row.first.form for row in rows):
        formats = tuple(row.first.form or "run" for row in rows)
        result.append(Column("format", formats, is_number=False))
    if any(row.first.taught for row in rows):
        teachers = tuple(row.first.taught or MISSING for row in rows)
        result.append(Column("teacher", teachers, is_number=False))
    if "tags" in table.options.by:
        tags = tuple(" ".join(row.first.tags) or MISSING for row in rows)
        result.append(Column("tags", tags, is_number=False))
    result.append(_accuracies(TEST_ACC, [row.accuracy for row in rows]))
    if any(run.record.per_class and run.record.per_class.unequal for r in rows for run in r.runs):
        result.append(_accuracies(BALANCED_ACC, [row.sample(BALANCED_ACC) for row in rows]))
    if len(table.values(number_of_seeds)) > 1:
        result.append(Column("n", tuple(str(number_of_seeds(row)) for row in rows)))
    result.append(Column("diff", tuple(_difference(row, interval=not dense) for row in rows)))
    # The other conditions of latency have a table of their own.
    for measure in measures(table.conditions[:1], "table"):
        result.append(measure_column(table, measure))
        if measure.ratio:
            result.append(Column("ratio", tuple(ratio_text(row.ratio(measure)) for row in rows)))
    return result


def measure_column(table: Table, measure: Measure) -> Column:
    """The values of a measure in its unit."""
    values = [row.value(measure) for row in table.rows]
    texts = decimals([None if value is None else value / measure.scale for value in values])
    return Column(measure.heading, texts, best=_lowest(values))


def _lowest(values: Sequence[float | None]) -> tuple[int, ...]:
    """Indices of the lowest value; none if all are equal."""
    found = [value for value in values if value is not None]
    if not found or min(found) == max(found):
        return ()
    return tuple(index for index, value in enumerate(values) if value == min(found))


def size_columns(table: Table) -> list[Column]:
    """Bytes on disk and in memory, one line per row; only those that were measured."""
    found = [measure_column(table, measure) for measure in measures(place="page")]
    measured = [column for column in found if set(column.cells) != {MISSING}]
    names = tuple(row_label(table, row) for row in table.rows)
    return [Column("network", names, is_number=False), *measured] if measured else []


def latency_columns(table: Table) -> list[Column]:
    """Every latency, one line per condition and row; empty if none was measured."""
    lines = [(c, row) for c in table.conditions for row in table.rows if row.latency(c) is not None]
    if not lines:
        return []

    def texts(of: Callable[[Conditions, Row], object]) -> tuple[str, ...]:
        return tuple(str(of(*line)) for line in lines)

    def percentile(name: str) -> tuple[str, ...]:
        return decimals([row.latency(conditions, name) for conditions, row in lines])

    steady = {True: "yes", False: "no", None: MISSING}
    return [
        *(
            Column(name.replace("_", " "), tuple(str(getattr(c, name)) for c, _ in lines), False)
            for name in _varying(table)
        ),
        Column("network", texts(lambda _, row: row_label(table, row)), is_number=False),
        Column("p50 ms", percentile("p50")),
        Column("p10", percentile("p10")),
        Column("p90", percentile("p90")),
        Column("ratio", texts(lambda c, row: ratio_text(row.latency_ratio(c)))),
        Column("steady", texts(lambda c, row: steady[row.stable(c)]), is_number=False),
    ]


def statistics_columns(table: Table) -> list[Column]:
    """One line per row that is compared with a reference."""
    pairs = [(row, row.reference, row.paired) for row in table.rows]
    lines = [(row, ref, found) for row, ref, found in pairs if ref and found]
    if not lines:
        return []
    found = [paired for _, _, paired in lines]
    return [
        Column("network", tuple(row_label(table, row) for row, _, _ in lines), is_number=False),
        Column("against", tuple(row_label(table, ref) for _, ref, _ in lines), is_number=False),
        Column("seeds", tuple(" ".join(map(str, p.seeds)) for p in found)),
        Column("diff by seed", tuple(" ".join(map(points, p.differences)) for p in found)),
        Column("mean", tuple(points(p.mean) for p in found)),
        Column("95 % t", tuple(_interval(p.t) for p in found)),
        Column("95 % bootstrap", tuple(_interval(p.bootstrap) for p in found)),
        Column(
            "only ref : only this",
            tuple(_tests(p, lambda t: f"{t.only_reference}:{t.only_other}") for p in found),
        ),
        Column("McNemar p", tuple(_tests(p, lambda t: p_text(t.p_value)) for p in found)),
    ]


def group_ends(table: Table) -> list[bool]:
    """True for each row that ends a group of the first field of ``by``."""
    groups = [table.key(table.options.by[0], row) for row in table.rows]
    return [*(own != after for own, after in pairwise(groups)), False]


def conv_label(table: Table, row: Row) -> str:
    """The conv type, with those of its options that differ in the table."""
    return table.labels[row.first].conv


def row_label(table: Table, row: Row, *, model: bool = True) -> str:
    """A name that is just long enough to tell the rows of the table apart.

    Args:
        table: the table of the row.
        row: to be named.
        model: name the model too, unless all rows have the same.
    """
    label = table.labels[row.first]
    return " ".join((*label.model, *label.parts) if model else label.parts)


def conditions_name(table: Table, conditions: Conditions) -> str:
    """The conditions of latency that vary in the table, such as ``onnxruntime batch 1``."""
    values = {name: getattr(conditions, name) for name in _varying(table) or ["runtime"]}
    return " ".join(
        f"{name.removesuffix('_size')} {value}" if isinstance(value, int) else str(value)
        for name, value in values.items()
    )


def match_text(match: Match | None) -> str:
    """The cost that was made equal and the residual, such as ``MACs -0.8%``."""
    if match is None:
        return MISSING
    return f"{QUANTITIES.get(match.quantity, match.quantity)} {100 * match.residual:+.1f}%"


def ratio_text(ratio: float | None) -> str:
    """A ratio such as ``0.12x``."""
    if ratio is None:
        return MISSING
    return "1x" if ratio == 1 else f"{ratio:.{_places(ratio)}f}x"


def number_of_seeds(row: Row) -> int:
    return row.accuracy.n if row.accuracy else 0


def decimals(values: Sequence[float | None]) -> tuple[str, ...]:
    """Numbers with equally many decimals, as many as the smallest one needs."""
    places = _places(min((value for value in values if value), default=1))
    return tuple(MISSING if value is None else f"{value:,.{places}f}" for value in values)


def _accuracies(measure: Measure, samples: Sequence[Sample | None]) -> Column:
    means = [None if sample is None else -sample.mean for sample in samples]
    return Column(measure.heading, tuple(map(_accuracy, samples)), best=_lowest(means))


def _accuracy(sample: Sample | None) -> str:
    if sample is None:
        return MISSING
    mean, interval = sample.mean, sample.interval
    text = f"{100 * mean:.2f}"
    if interval is None:
        return text
    if abs(mean - interval.low - (interval.high - mean)) > 1e-9:  # cut off at 0 or 100
        return f"{text} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
    return f"{text} {PLUS_MINUS}{100 * (interval.high - mean):.2f}"


def _difference(row: Row, *, interval: bool) -> str:
    if row.is_reference:
        return "0" if row.accuracy else MISSING
    if row.paired is None:
        return MISSING
    text = points(row.paired.mean)
    return f"{text} {interval_text(row.paired.t)}" if interval and row.paired.t else text


def _interval(interval: Interval | None) -> str:
    return interval_text(interval) if interval else MISSING


def _tests(paired: Paired, text: Callable[[McNemar], str]) -> str:
    return " ".join(map(text, paired.mcnemar)) or MISSING


def p_text(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _varying(table: Table) -> list[str]:
    """The names of the conditions that differ between latencies of the table."""
    return [
        n for n in Conditions.model_fields if len({getattr(c, n) for c in table.conditions}) > 1
    ]


def _places(value: float) -> int:
    """Decimals that show two or three digits of a positive value, at most five."""
    return next((n for n, limit in enumerate((100, 10, 0.1, 0.01, 0.001)) if value >= limit), 5)
