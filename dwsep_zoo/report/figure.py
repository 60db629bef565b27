"""A table as a picture: what accuracy costs, and what the conv types save."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dwsep_zoo.report.columns import conditions_name, conv_label, ratio_text
from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.report.words import heading
from dwsep_zoo.schema.measures import MEASURES
from dwsep_zoo.schema.record import Conditions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind eyes tell apart; their yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = {
    "standard": "s",
    "depthwise_separable": "o",
    "grouped": "^",
    "blueprint": "D",
    "spatially_separable": "v",
    "mixed": "P",
}
MORE_MARKERS = ("X", "p", "*", "<", ">", "h", "d")  # for conv types not above, and options
MOST_RATIOS, MOST_LABELS = 12, 8  # rows in the panel of ratios; more are no longer legible
MOST_LATENCIES = 6  # panels; the tables have all
GREY = "#666666"
SOLVED = "width solved for an equal budget"  # drawn hollow
FRONT: dict[str, Any] = {"color": "#bbbbbb", "lw": 4, "alpha": 0.5, "zorder": 1}
Value = Callable[[Row], "float | None"]
MEASURE = {measure.name: measure for measure in MEASURES}


def figure(table: Table) -> Figure:
    """Accuracy against parameters, MACs and each latency, and the ratios to the references.

    A colour is a model, a marker a conv type, hollow if its width was solved for; a thin line joins
    the variants of one network, a grey one the Pareto front; error bars are the 95 % interval of
    the mean over seeds. Drawn without pyplot: no state, no display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[tuple[Value, str, str]] = [
        (_params, "parameters, millions", ""),
        (_macs, "MACs of one image, millions", "1 MAC = one multiply-add = 2 FLOPs"),
    ]
    for conditions in table.conditions[:MOST_LATENCIES]:
        label = "median latency of one batch, ms"
        if len(table.conditions) > 1:
            label += f": {conditions_name(table, conditions)}"
        panels.append((_latency_under(conditions), label, _fold(str(conditions))))
    has_ratios = 0 < len(_others(table)) <= MOST_RATIOS
    number = len(panels) + has_ratios
    width = 2 if number in (2, 4) else 3
    height = -(-number // width)
    picture = Figure(figsize=(4.7 * width, 4.1 * height + 0.8), dpi=120, layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots(height, width, squeeze=False).flatten()
    for own, (cost, label, note) in zip(axes, panels, strict=False):
        _cost_panel(own, table, cost, label)
        own.set_title(note, fontsize=8, color=GREY)
    if has_ratios:
        _ratio_panel(axes[len(panels)], table)
    for unused in axes[number:]:
        unused.remove()
    picture.suptitle(_fold(heading(table), 45 * width), fontsize=11)
    picture.legend(
        handles=_legend(table),
        loc="outside lower center",
        ncols=2 * width,
        frameon=False,
        fontsize=9,
    )
    return picture


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of some pairs of cost and accuracy no other one beats in both, by rising cost."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def _cost_panel(axes: Axes, table: Table, cost: Value, label: str) -> None:
    """Test accuracy in percent against a cost, on a logarithmic axis."""
    axes.set_xlabel(label)
    axes.set_ylabel("test accuracy, %")
    points: list[tuple[float, float]] = []
    centres: dict[Any, tuple[float, float]] = {}  # the reference, as it comes first, or what else
    for row in table.rows:
        x = cost(row)
        if row.accuracy is None or not x:
            continue
        y, interval = 100 * row.accuracy.mean, row.accuracy.interval
        points.append((x, y))
        style = _style(table, row)
        colour = style["color"]
        if interval:
            spread = [[y - 100 * interval.low], [100 * interval.high - y]]
            axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=colour, capsize=3, lw=1.2)
        centre = centres.setdefault(row.network, (x, y))
        axes.plot([centre[0], x], [centre[1], y], color=colour, lw=0.8, alpha=0.5)
        axes.plot(x, y, **style, zorder=3)
    if not points:
        axes.text(0.5, 0.5, "not measured", ha="center", color=GREY, transform=axes.transAxes)
        return
    front = [points[index] for index in pareto_front(points)]
    axes.plot(*zip(*front, strict=True), drawstyle="steps-post", **FRONT)
    costs = [x for x, _ in points]
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.4, max(costs) * 1.4)
    axes.margins(y=0.12)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))  # intervals may reach beyond what is possible
    _plain_log_ticks(axes.xaxis)
    _tidy(axes)


def _ratio_panel(axes: Axes, table: Table) -> None:
    """Cost relative to the references, one group of stems for each kind of cost."""
    rows = _others(table)
    conditions = table.conditions[:1]
    kinds: list[tuple[str, Value]] = [
        ("params", lambda row: row.ratio(MEASURE["params"])),
        ("MACs", lambda row: row.ratio(MEASURE["macs"])),
        *(("latency", _ratio_under(c)) for c in conditions),
        ("training time", lambda row: row.ratio(MEASURE["train_s"])),
    ]
    axes.axhline(1, color=GREY, lw=1)
    ratios = [1.0]
    for kind, (_, ratio) in enumerate(kinds):
        for number, row in enumerate(rows):
            value = ratio(row)
            if not value:
                continue
            x = kind + 0.7 * ((number + 0.5) / len(rows) - 0.5)
            style = _style(table, row)
            axes.plot([x, x], [1, value], color=style["color"], lw=1.2, alpha=0.6)
            axes.plot(x, value, **style, zorder=3)
            if len(rows) <= MOST_LABELS:
                axes.annotate(
                    ratio_text(value),
                    (x, value),
                    xytext=(0, -8 if value <= 1 else 8),
                    textcoords="offset points",
                    rotation=90,
                    ha="center",
                    va="top" if value <= 1 else "bottom",
                    fontsize=7.5,
                )
            ratios.append(value)
    axes.set_yscale("log")
    low, high = min(*ratios, 0.5), max(ratios)
    margin = (high / low) ** 0.18  # room for the labels
    axes.set_ylim(low / margin, high * (margin if high > 1 else 1.1))
    _plain_log_ticks(axes.yaxis)
    axes.set_xticks(range(len(kinds)), [name for name, _ in kinds])
    axes.set_xlim(-0.5, len(kinds) - 0.5)
    axes.tick_params(axis="x", length=0)
    convs = {row.reference.first.conv for row in rows if row.reference}
    reference = convs.pop() if len(convs) == 1 else "the reference"
    axes.set_ylabel(f"ratio to {reference}")
    axes.set_title(f"below 1: cheaper than {reference}", fontsize=8, color=GREY)
    _tidy(axes)
    axes.grid(visible=False, axis="x")


def _legend(table: Table) -> list[Any]:
    from matplotlib.lines import Line2D

    colours = {row.first.model: _style(table, row)["color"] for row in table.rows}
    models = [Line2D([], [], color=c, lw=4, label=name) for name, c in colours.items()]
    convs = [
        Line2D([], [], color=GREY, marker=m, ls="none", ms=7, label=f"conv={name}")
        for name, m in _markers(table).items()
    ]
    hollow = Line2D([], [], color=GREY, marker="o", mfc="white", ls="none", ms=7)
    hollow.set_label(SOLVED)
    front = Line2D([], [], **FRONT, label="Pareto front")
    return [*models, *convs, *([hollow] if any(row.match for row in table.rows) else []), front]


def _style(table: Table, row: Row) -> dict[str, Any]:
    """Colour by model, marker by conv type and, where they vary, its options."""
    models = table.values(lambda r: r.first.model)
    colour = COLOURS[models.index(row.first.model) % len(COLOURS)]
    return {
        "color": colour,
        "marker": _markers(table)[conv_label(table, row)],
        "markersize": 8,
        "markeredgecolor": colour if row.match else "white",
        "markerfacecolor": "white" if row.match else colour,
        "linestyle": "none",
    }


def _markers(table: Table) -> dict[str, str]:
    markers: dict[str, str] = {}
    others = itertools.cycle(MORE_MARKERS)
    for conv, label in table.values(lambda row: (row.first.conv, conv_label(table, row))):
        own = MARKERS.get(conv)
        markers[label] = own if own and own not in markers.values() else next(others)
    return markers


def _others(table: Table) -> list[Row]:
    """The rows that have a reference to be compared with."""
    return [row for row in table.rows if row.reference and not row.is_reference]


def _params(row: Row) -> float | None:
    return None if row.record.params is None else row.record.params / 1e6


def _macs(row: Row) -> float | None:
    return None if row.record.macs is None else row.record.macs / 1e6


def _latency_under(conditions: Conditions) -> Value:
    return lambda row: row.latency(conditions)


def _ratio_under(conditions: Conditions) -> Value:
    return lambda row: row.latency_ratio(conditions)


def _plain_log_ticks(axis: Any) -> None:
    """1, 2, 5, 10 instead of powers of ten; more of them where the axis is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _tidy(axes: Axes) -> None:
    axes.grid(visible=True, color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _fold(text: str, width: int = 60) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def pixels(picture: Figure) -> Any:
    """Draw as an array ``(height, width, 4)`` of bytes."""
    import numpy as np

    canvas: Any = picture.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
