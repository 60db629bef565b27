"""Paired differences of accuracy with their intervals."""

from __future__ import annotations

from functools import partial

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from dwsep_zoo.report.columns import row_label
from dwsep_zoo.report.drawn import drawn
from dwsep_zoo.report.figures.panel import WIDE, Mark, Panel
from dwsep_zoo.report.figures.style import COLOURS, INK, PAGE, key
from dwsep_zoo.report.statistics import Paired, interval_text, points
from dwsep_zoo.report.table import Row, Table

BLUE, VERMILION = COLOURS[:2]
T = {"color": BLUE, "lw": 3, "solid_capstyle": "butt"}
BOOTSTRAP = {"color": VERMILION, "lw": 2, "ls": (0, (2, 1.5))}
LEGEND: list[Artist] = [
    key("D", BLUE, "mean"),
    key("o", INK, "one seed", hollow=True),
    Line2D([], [], **T, label="95 % interval, Student's t"),  # type: ignore[arg-type]
    Line2D([], [], **BOOTSTRAP, label="95 % interval, bootstrap"),  # type: ignore[arg-type]
]
Pairs = list[tuple[int, Row, Paired]]


def difference_panel(table: Table) -> Panel | None:
    """A line for each row with a reference; ``None`` without any."""
    pairs = [(n, row, row.paired) for n, row in drawn(table) if row.paired]
    if not pairs:
        return None
    title, note = "Difference of test accuracy", "right of 0: better than the reference"
    return Panel(title, partial(_draw, table, pairs), note, (WIDE, 46 + 44 * len(pairs)), 12)


def _draw(table: Table, pairs: Pairs, axes: Axes) -> list[Mark]:
    axes.set_xlabel("difference, points of test accuracy")
    axes.set_ylim(len(pairs) - 0.5, -0.65)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=INK, lw=1)
    marks: list[Mark] = []
    for place, (index, row, pair) in enumerate(pairs):
        who = row_label(table, row)
        axes.text(0, place - 0.25, who, transform=axes.get_yaxis_transform(), fontsize=9)
        for found, name, y, style in (
            (pair.t, "Student's t", place, T),
            (pair.bootstrap, "bootstrap", place + 0.16, BOOTSTRAP),
        ):
            if found:
                ends = [100 * found.low, 100 * found.high]
                (line,) = axes.plot(ends, [y, y], **style)  # type: ignore[arg-type]
                text = f"{who}: 95 % interval by {name} {interval_text(found)}"
                marks.append(Mark(line, text, index))
        for seed, value in zip(pair.seeds, pair.differences, strict=True):
            (dot,) = axes.plot(100 * value, place, "o", mec=INK, mfc=PAGE, ms=7)
            marks.append(Mark(dot, f"{who}, seed {seed}: {points(value)} points", index))
        (mean,) = axes.plot(100 * pair.mean, place, "D", color=BLUE, mec=PAGE, ms=8)
        marks.append(Mark(mean, f"{who}: {pair.words}", index))
    axes.autoscale_view(scaley=False)
    return marks
