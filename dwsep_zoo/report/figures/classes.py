"""The differences of accuracy between two networks, class by class."""

from __future__ import annotations

from functools import partial

from matplotlib.axes import Axes

from dwsep_zoo.report.class_pairs import ClassPair
from dwsep_zoo.report.figures.differences import BLUE, T
from dwsep_zoo.report.figures.panel import WIDE, Mark, Panel
from dwsep_zoo.report.figures.style import INK, PAGE
from dwsep_zoo.report.statistics import points

LETTERS = 16


def class_panel(pair: ClassPair) -> Panel:
    """A line for each class that is shown, the worst on top."""
    note = "right of 0: better than the reference; lines are 95 % intervals, dots single seeds"
    height = 46 + 22 * len(pair.differences)
    return Panel("Difference by class", partial(_draw, pair), note, (WIDE, height), 108)


def _draw(pair: ClassPair, axes: Axes) -> list[Mark]:
    axes.set_xlabel("difference, points of the class's accuracy")
    axes.set_ylim(len(pair.differences) - 0.4, -0.6)
    names = [one.name for one in pair.differences]
    short = [name if len(name) <= LETTERS else f"{name[: LETTERS - 3]}..." for name in names]
    axes.set_yticks(range(len(short)), short)
    axes.axvline(0, color=INK, lw=1)
    marks: list[Mark] = []
    for place, one in enumerate(pair.differences):
        if found := one.paired.t:
            axes.plot([100 * found.low, 100 * found.high], [place, place], **T)  # type: ignore[arg-type]
        for seed, value in zip(one.paired.seeds, one.paired.differences, strict=True):
            (dot,) = axes.plot(100 * value, place, "o", mec=INK, mfc=PAGE, ms=5)
            marks.append(Mark(dot, f"{one.name}, seed {seed}: {points(value)} points"))
        (mean,) = axes.plot(100 * one.paired.mean, place, "D", color=BLUE, mec=PAGE, ms=7)
        text = f"{one.name}, {one.images:,} images: {one.paired.words}"
        marks.append(Mark(mean, text))
    axes.autoscale_view(scaley=False)
    return marks
