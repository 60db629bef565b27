"""A table as a picture: what accuracy costs, and what the conv types save."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dwsep_zoo.report.render import conv_label, heading, ratio_text, shown_latencies
from dwsep_zoo.report.table import Row, Table

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
GREY = "#666666"
Value = Callable[[Row], "float | None"]


def figure(table: Table) -> Figure:
    """Accuracy against MACs and against latency, and the ratios to ``standard`` if there are any.

    A colour is a model, a marker a conv type, a thin line joins the variants of one network, error
    bars are the standard deviation over seeds. Drawn without pyplot: no state, no display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_ratios = 0 < len(_others(table)) <= MOST_RATIOS
    picture = Figure(figsize=(13.5 if has_ratios else 9.5, 4.9), dpi=120, layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots(1, 3 if has_ratios else 2)
    axes[1].sharey(axes[0])
    axes[1].tick_params(labelleft=False)
    latencies = shown_latencies(table)[:1]
    _cost_panel(axes[0], table, _macs, "MACs of one image, millions")
    _cost_panel(
        axes[1],
        table,
        (lambda row: row.latency(latencies[0][1])) if latencies else (lambda row: None),
        "median latency of one batch, ms",
    )
    axes[1].set_title(_fold(str(latencies[0][1])) if latencies else "", fontsize=8, color=GREY)
    axes[0].set_ylabel("test accuracy, %")
    axes[0].set_title("1 MAC = one multiply-add = 2 FLOPs", fontsize=8, color=GREY)
    if has_ratios:
        _ratio_panel(axes[2], table)
    picture.suptitle(heading(table), fontsize=11)
    picture.legend(
        handles=_legend(table), loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    return picture


def _cost_panel(axes: Axes, table: Table, cost: Value, label: str) -> None:
    """Test accuracy in percent against a cost, on a logarithmic axis."""
    axes.set_xlabel(label)
    costs: list[float] = []
    centres: dict[Any, tuple[float, float]] = {}  # standard, as it comes first, or what else does
    for row in table.rows:
        x = cost(row)
        if row.accuracy is None or not x:
            continue
        costs.append(x)
        y, spread = 100 * row.accuracy.mean, 100 * (row.accuracy.std or 0)
        style = _style(table, row)
        colour = style["color"]
        if spread:
            axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=colour, capsize=3, lw=1.2)
        centre = centres.setdefault(row.network, (x, y))
        axes.plot([centre[0], x], [centre[1], y], color=colour, lw=0.8, alpha=0.5)
        axes.plot(x, y, **style, zorder=3)
    if not costs:
        axes.text(0.5, 0.5, "not measured", ha="center", color=GREY, transform=axes.transAxes)
        return
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.4, max(costs) * 1.4)
    axes.margins(y=0.12)
    _plain_log_ticks(axes.xaxis)
    _tidy(axes)


def _ratio_panel(axes: Axes, table: Table) -> None:
    """Cost relative to ``standard``, one group of stems for each kind of cost."""
    rows = _others(table)
    conditions = [c for _, c in shown_latencies(table)[:1]]
    kinds: list[tuple[str, Value]] = [
        ("params", lambda row: row.params_ratio),
        ("MACs", lambda row: row.macs_ratio),
        *(("latency", _ratio_under(c)) for c in conditions),
        ("training time", lambda row: row.train_ratio),
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
    axes.set_ylabel("ratio to standard")
    axes.set_title("below 1: cheaper than standard", fontsize=8, color=GREY)
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
    return models + convs


def _style(table: Table, row: Row) -> dict[str, Any]:
    """Colour by model, marker by conv type and, where they vary, its options."""
    models = table.values(lambda r: r.first.model)
    return {
        "color": COLOURS[models.index(row.first.model) % len(COLOURS)],
        "marker": _markers(table)[conv_label(table, row)],
        "markersize": 8,
        "markeredgecolor": "white",
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
    """The rows that have a ``standard`` to be compared with."""
    return [row for row in table.rows if row.reference and not row.is_reference]


def _macs(row: Row) -> float | None:
    return None if row.first.macs is None else row.first.macs / 1e6


def _ratio_under(conditions: Any) -> Value:
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
