"""Test accuracy against each cost."""

from __future__ import annotations

import re
from collections.abc import Hashable
from functools import partial

from matplotlib.axes import Axes

from dwsep_zoo.report.columns import conditions_name, number_of_seeds, row_label
from dwsep_zoo.report.drawn import drawn, pareto_front
from dwsep_zoo.report.figures.panel import Mark, Panel, log_ticks
from dwsep_zoo.report.figures.style import FRONT, SOFT, Styles
from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.schema.measures import LATENCY, MEASURES, Measure
from dwsep_zoo.schema.record import Conditions

MOST_LATENCIES = 6  # panels; the tables have all


def cost_panels(table: Table) -> list[Panel]:
    """A panel for each measure that is plotted, and for each condition of latency.

    A colour is a conv type, a marker a conv type or one of several models, hollow if its width was
    solved for and half filled if it had a teacher; a thin line joins the variants of one network, a
    dashed one the Pareto front; error bars are the 95 % interval of the mean over seeds.
    """
    panels = []
    for measure in MEASURES:
        every = table.conditions[:MOST_LATENCIES] if measure is LATENCY else (None,)
        for conditions in every if measure.axis else ():
            suffix = (
                f": {conditions_name(table, conditions)}" if conditions and len(every) > 1 else ""
            )
            note = "1 MAC = one multiply-add = 2 FLOPs" if measure.name == "macs" else ""
            name = re.split(", | of ", measure.axis)[0]
            draw = partial(_draw, table, measure, measure.axis + suffix, conditions)
            panels.append(Panel(f"Accuracy against {name}{suffix}", draw, str(conditions or note)))
    return panels


def _draw(
    table: Table, measure: Measure, label: str, conditions: Conditions | None, axes: Axes
) -> list[Mark]:
    axes.set(xlabel=label, ylabel="test accuracy, %")
    measure = measure.under(conditions) if conditions else measure
    points: list[tuple[float, float]] = []
    marks: list[Mark] = []
    centres: dict[
        Hashable, tuple[float, float]
    ] = {}  # the first row, the reference if there is one
    styles = Styles(table)
    for index, row in drawn(table):
        value = row.value(measure)
        if row.accuracy is None or not value:
            continue
        x, y, interval = value / measure.scale, 100 * row.accuracy.mean, row.accuracy.interval
        points.append((x, y))
        style = styles(row)
        if interval:
            spread = [[y - 100 * interval.low], [100 * interval.high - y]]
            axes.errorbar(x, y, yerr=spread, fmt="none", color=style["color"], capsize=3, lw=1.2)
        centre = centres.setdefault(row.network, (x, y))
        axes.plot([centre[0], x], [centre[1], y], color=style["color"], lw=0.8, alpha=0.5)
        (artist,) = axes.plot(x, y, **style, zorder=3)
        unsteady = conditions and row.stable(conditions) is False
        text = f"{_accuracy(table, row)}; {label}: {x:,.4g}{', not steady' if unsteady else ''}"
        marks.append(Mark(artist, text, index))
    if not points:
        axes.text(0.5, 0.5, "not measured", ha="center", color=SOFT, transform=axes.transAxes)
        return []
    front = [points[index] for index in pareto_front(points)]
    axes.plot(*zip(*front, strict=True), drawstyle="steps-post", **FRONT)
    costs = [x for x, _ in points]
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.4, max(costs) * 1.4)
    axes.margins(y=0.12)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))  # intervals may reach beyond what is possible
    log_ticks(axes.xaxis)
    return marks


def _accuracy(table: Table, row: Row) -> str:
    assert row.accuracy
    text, interval = (
        f"{row_label(table, row)}: {100 * row.accuracy.mean:.2f} %",
        row.accuracy.interval,
    )
    if interval:
        text += f", 95 % interval [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
    return f"{text}, n={number_of_seeds(row)}"
