"""What a table's rows look like as plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

from dwsep_zoo.report.columns import conditions_name, conv_label, number_of_seeds, row_label
from dwsep_zoo.report.figure import COLOURS, MARKERS, MORE_MARKERS, SOLVED, pareto_front
from dwsep_zoo.report.html.plot import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Key,
    Label,
    Line,
    Plot,
    Point,
    axis,
)
from dwsep_zoo.report.statistics import interval_text, points
from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.schema.record import Conditions

WIDTH, HEIGHT = 430.0, 300.0
WIDE = 900.0
BAR_STEP = 46.0  # height of a bar with its label
CURVES = (
    ("val/acc", "validation accuracy, %"),
    ("train/acc", "training accuracy, %"),
    ("val/loss", "validation loss"),
    ("train/loss", "training loss"),
)
LOG_LOSS = 20  # a larger ratio of losses needs a logarithmic axis
ALL_MARKERS = (*MARKERS.values(), *MORE_MARKERS)


@dataclass(frozen=True)
class Chart:
    """Plots that share a legend."""

    title: str
    plots: tuple[Plot, ...]
    legend: tuple[Key, ...]


@dataclass(frozen=True)
class _Cost:
    """What accuracy is drawn against; ``label`` has the unit."""

    name: str
    note: str
    label: str
    value: Callable[[Row], float | None]


def row_id(number: int, index: int) -> str:
    """Of row ``index`` of table ``number``, in the document."""
    return f"t{number}r{index}"


def markers(table: Table) -> dict[str, str]:
    """A marker for each conv label of the table, as in the picture beside this page."""
    found: dict[str, str] = {}
    others = cycle(MORE_MARKERS)
    for conv, label in table.values(lambda row: (row.first.conv, conv_label(table, row))):
        own = MARKERS.get(conv)
        found[label] = own if own and own not in found.values() else next(others)
    return found


def pareto(table: Table, number: int) -> Chart:
    """Test accuracy against every cost.

    A colour is a model, a marker a conv type, hollow if its width was solved for.
    """
    shapes = markers(table)
    models = table.values(lambda row: row.first.model)
    costs = [
        _Cost("parameters", "", "parameters, millions", lambda row: _mega(row.record.params)),
        _Cost("MACs", "", "MACs of one image, millions", lambda row: _mega(row.record.macs)),
        *(_latency(table, conditions) for conditions in table.conditions),
    ]
    looks = [
        (colour_class(models.index(row.first.model)), shapes[conv_label(table, row)])
        for row in table.rows
    ]
    plots = (_pareto(table, number, cost, looks) for cost in costs)
    return Chart(
        "Accuracy against cost",
        tuple(plot for plot in plots if plot),
        (
            *(Key(colour_class(index), model) for index, model in enumerate(models)),
            *(Key("ink", f"conv={label}", marker=shape) for label, shape in shapes.items()),
            *((Key("hollow ink", SOLVED, marker="o"),) if any(r.match for r in table.rows) else ()),
            Key("front", "not beaten in both accuracy and cost", line=True),
            Key("link ink", "variants of one network", line=True),
        ),
    )


def _latency(table: Table, conditions: Conditions) -> _Cost:
    return _Cost(
        f"latency: {conditions_name(table, conditions)}",
        str(conditions),
        "median latency of one batch, ms",
        lambda row: row.latency(conditions),
    )


def _pareto(
    table: Table, number: int, cost_of: _Cost, looks: Sequence[tuple[str, str]]
) -> Plot | None:
    rows = [
        (index, row, cost)
        for index, row in enumerate(table.rows)
        if row.accuracy and (cost := cost_of.value(row))
    ]
    if not rows:
        return None
    label = cost_of.label
    heights: list[float] = []
    for _, row, _ in rows:
        low, mean, high = _accuracy(row)
        heights += [low, mean, high]
    x = axis(label, [cost for *_, cost in rows], LEFT, WIDTH - RIGHT, log=True)
    y = axis("test accuracy, %", heights, HEIGHT - BOTTOM, TOP, limits=(0, 100))
    lines, marks = [], []
    centres: dict[object, tuple[float, float]] = {}  # the first row, which the reference is
    for index, row, cost in rows:
        (style, marker), (low, mean, high) = looks[index], _accuracy(row)
        place = x.at(cost), y.at(mean)
        centre = centres.setdefault(row.network, place)
        if centre != place:
            lines.append(Line((centre, place), f"link {style}"))
        text = f"{row_label(table, row)}: {mean:.2f} %"
        if high > low:
            lines += _whiskers(place[0], y.at(y.clip(low)), y.at(y.clip(high)), style)
            text += f", 95 % interval [{low:.2f}, {high:.2f}]"
        text += f", n={number_of_seeds(row)}; {label}: {cost:,.4g}"
        fill = f"hollow {style}" if row.match else style
        marks.append(Point(*place, marker, fill, text, row_id(number, index)))
    front = pareto_front([(cost, _accuracy(row)[1]) for _, row, cost in rows])
    corners = [(marks[i].x, marks[i].y) for i in front]
    steps = corners[:1]
    for corner in corners[1:]:
        steps += [(corner[0], steps[-1][1]), corner]
    steps.append((x.end, steps[-1][1]))
    lines.append(Line(tuple(steps), "front", "not beaten in both accuracy and cost"))
    title = f"Accuracy and {cost_of.name}"
    return Plot(title, cost_of.note, WIDTH, HEIGHT, x, y, tuple(lines), points=tuple(marks))


def curves(table: Table, number: int) -> list[Chart]:
    """Accuracy and loss by epoch, a chart for each network, a colour for each of its variants."""
    networks: dict[tuple[object, ...], list[tuple[int, Row]]] = {}
    for index, row in enumerate(table.rows):
        if any(run.epochs for run in row.runs):
            networks.setdefault(row.network, []).append((index, row))
    charts = []
    for (model, width, stride), rows in networks.items():
        plots = [_curves(table, number, name, label, rows) for name, label in CURVES]
        legend = tuple(
            Key(colour_class(place), row_label(table, row), marker=cycled_marker(place))
            for place, (_, row) in enumerate(rows)
        )
        title = ", ".join(
            str(part)
            for part in (
                model,
                f"width {width:g}" if isinstance(width, (int, float)) else "",
                f"output stride {stride}" if stride else "",
            )
            if part
        )
        charts.append(Chart(title, tuple(plot for plot in plots if plot), legend))
    return [chart for chart in charts if chart.plots]


def _curves(
    table: Table, number: int, name: str, label: str, rows: Sequence[tuple[int, Row]]
) -> Plot | None:
    scale = 100.0 if name.endswith("acc") else 1.0
    seeds = [
        [
            {e["epoch"]: scale * e[name] for e in run.epochs if name in e and "epoch" in e}
            for run in row.runs
        ]
        for _, row in rows
    ]
    values = [value for runs in seeds for run in runs for value in run.values()]
    epochs = [epoch for runs in seeds for run in runs for epoch in run]
    if not values:
        return None
    log = scale == 1 and min(values) > 0 and max(values) / min(values) > LOG_LOSS
    limits = (0.0, 100.0) if scale == 100 else (0.0, float("inf"))
    x = axis("epoch", epochs, LEFT, WIDTH - RIGHT, margin=0.03, whole=True)
    title = f"{label}, logarithmic" if log else label
    y = axis("", values, HEIGHT - BOTTOM, TOP, log=log, limits=limits, margin=0.05)
    lines, marks = [], []
    for place, ((index, row), runs) in enumerate(zip(rows, seeds, strict=True)):
        curves_ = [run for run in runs if run]
        if not curves_:
            continue
        who, style = row_label(table, row), colour_class(place)
        if len(curves_) > 1:
            for run, curve in zip(row.runs, runs, strict=True):
                if curve:
                    dots = tuple((x.at(e), y.at(v)) for e, v in sorted(curve.items()))
                    lines.append(Line(dots, f"seed {style}", f"{who}, seed {run.record.seed}"))
        # The mean is of the epochs that all seeds have: one that stopped early would make a step.
        common = sorted(set.intersection(*(set(curve) for curve in curves_)))
        if not common:
            continue
        means = [statistics.fmean(curve[epoch] for curve in curves_) for epoch in common]
        dots = tuple((x.at(e), y.at(v)) for e, v in zip(common, means, strict=True))
        what = f"mean of {len(curves_)} seeds" if len(curves_) > 1 else "one seed"
        lines.append(Line(dots, f"mean {style}", f"{who}, {what}"))
        text = f"{who}, {what}: {label} {means[-1]:.4g} after epoch {common[-1]:g}"
        marks.append(Point(*dots[-1], cycled_marker(place), style, text, row_id(number, index)))
    return Plot(title, "", WIDTH, HEIGHT, x, y, tuple(lines), points=tuple(marks))


def differences(table: Table, number: int) -> Chart | None:
    """Paired differences of accuracy with their intervals, a line a pair."""
    pairs = [
        (index, row, row.reference, row.paired)
        for index, row in enumerate(table.rows)
        if row.reference and row.paired
    ]
    if not pairs:
        return None
    values = [0.0]
    for *_, pair in pairs:
        values += pair.differences
        values += [v for part in (pair.t, pair.bootstrap) if part for v in (part.low, part.high)]
    height = BAR_STEP * len(pairs) + TOP + BOTTOM
    x = axis("difference, points of test accuracy", [100 * v for v in values], LEFT, WIDE - RIGHT)
    zero = x.at(0)
    lines = [Line(((zero, TOP), (zero, height - BOTTOM)), "zero")]
    labels, marks = [], []
    for place, (index, row, reference, pair) in enumerate(pairs):
        top = TOP + BAR_STEP * place
        middle = top + BAR_STEP * 0.66
        who = f"{row_label(table, row)} against {row_label(table, reference)}"
        labels.append(Label(LEFT, top + 14, who))
        for found, name, offset, style in (
            (pair.t, "Student's t", 0, "interval k0"),
            (pair.bootstrap, "bootstrap", 7, "interval k1 dashed"),
        ):
            if found:
                ends = tuple((x.at(100 * v), middle + offset) for v in (found.low, found.high))
                text = f"{who}: 95 % interval by {name} {interval_text(found)}"
                lines.append(Line(ends, style, text))
        for seed, value in zip(pair.seeds, pair.differences, strict=True):
            text = f"{who}, seed {seed}: {points(value)} points"
            marks.append(
                Point(x.at(100 * value), middle, "o", "hollow ink", text, row_id(number, index))
            )
        text = f"{who}: {pair.words}"
        marks.append(Point(x.at(100 * pair.mean), middle, "D", "k0", text, row_id(number, index)))
    plot = Plot(
        "Difference of test accuracy, paired by seed",
        "right of 0: better than its reference",
        WIDE,
        height,
        x,
        None,
        tuple(lines),
        labels=tuple(labels),
        points=tuple(marks),
    )
    keys = (
        Key("k0", "mean", marker="D"),
        Key("hollow ink", "one seed", marker="o"),
        Key("interval k0", "95 % interval, Student's t", line=True),
        Key("interval k1 dashed", "95 % interval, bootstrap", line=True),
    )
    return Chart("Paired differences", (plot,), keys)


def cycled_marker(place: int) -> str:
    return ALL_MARKERS[place % len(ALL_MARKERS)]


def colour_class(index: int) -> str:
    return f"k{index % len(COLOURS)}"


def _accuracy(row: Row) -> tuple[float, float, float]:
    """Low end of the interval, mean and high end, in percent."""
    assert row.accuracy
    mean, interval = row.accuracy.mean, row.accuracy.interval
    low, high = (interval.low, interval.high) if interval else (mean, mean)
    return 100 * low, 100 * mean, 100 * high


def _whiskers(x: float, low: float, high: float, style: str) -> list[Line]:
    ends = [((x - 4, y), (x + 4, y)) for y in (low, high)]
    return [Line(((x, low), (x, high)), f"error {style}")] + [
        Line(end, f"error {style}") for end in ends
    ]


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6
