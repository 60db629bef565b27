"""Costs relative to the references."""

from __future__ import annotations

from functools import partial

from matplotlib.axes import Axes

from dwsep_zoo.report.columns import ratio_text, row_label
from dwsep_zoo.report.figures.panel import Mark, Panel, log_ticks
from dwsep_zoo.report.figures.style import SOFT, Styles
from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.report.verdict import is_unsteady
from dwsep_zoo.schema.measures import LATENCY, measures

MOST_RATIOS, MOST_LABELS = 12, 8  # rows; more are no longer legible
UNSTEADY = " ~"


def ratio_panel(table: Table) -> Panel | None:
    """A group of stems for each cost; ``None`` without rows to compare, or with too many."""
    rows = [(i, r) for i, r in enumerate(table.rows) if r.reference and not r.is_reference]
    if not 0 < len(rows) <= MOST_RATIOS:
        return None
    convs = {row.reference.first.conv for _, row in rows if row.reference}
    reference = convs.pop() if len(convs) == 1 else "the reference"
    note = f"below 1: cheaper than {reference}"
    return Panel(f"Cost relative to {reference}", partial(_draw, table, rows, reference), note)


def _draw(table: Table, rows: list[tuple[int, Row]], reference: str, axes: Axes) -> list[Mark]:
    kinds = [m for m in measures(table.conditions[:1], "table") if m.ratio]
    names = ["latency" if m.name == LATENCY.name else m.label for m in kinds]
    axes.set(yscale="log", ylabel=f"ratio to {reference}")
    axes.axhline(1, color=SOFT, lw=1)
    ratios, marks = [1.0], []
    styles = Styles(table)
    for place, (measure, name) in enumerate(zip(kinds, names, strict=True)):
        for number, (index, row) in enumerate(rows):
            ratio = row.ratio(measure)
            if not ratio:
                continue
            x = place + 0.7 * ((number + 0.5) / len(rows) - 0.5)
            style = styles(row)
            axes.plot([x, x], [1, ratio], color=style["color"], lw=1.5, alpha=0.6)
            (artist,) = axes.plot(x, ratio, **style, zorder=3)
            text = ratio_text(ratio)
            if name == "latency" and is_unsteady(row, table.conditions[0]):
                text += UNSTEADY
            marks.append(Mark(artist, f"{row_label(table, row)}: {name} {text}", index))
            if len(rows) <= MOST_LABELS:
                _label(axes, text, (x, ratio), upright=len(rows) > 2)
            ratios.append(ratio)
    low, high = min(*ratios, 0.5), max(ratios)
    margin = (high / low) ** 0.18  # room for the labels
    axes.set_ylim(low / margin, high * (margin if high > 1 else 1.1))
    log_ticks(axes.yaxis)
    axes.set_xticks(range(len(kinds)), names)
    axes.set_xlim(-0.5, len(kinds) - 0.5)
    axes.grid(visible=False, axis="x")
    return marks


def _label(axes: Axes, text: str, place: tuple[float, float], *, upright: bool) -> None:
    below = place[1] <= 1
    axes.annotate(
        text,
        place,
        xytext=(0, -8 if below else 8),
        textcoords="offset points",
        rotation=90 if upright else 0,
        ha="center",
        va="top" if below else "bottom",
        fontsize=8,
    )
