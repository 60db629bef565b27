"""The course of a recipe: learning rates, sizes of images, and averages by epoch."""

from __future__ import annotations

from matplotlib.axes import Axes

from dwsep_zoo.report.figures.panel import Drawing, context, log_ticks
from dwsep_zoo.report.figures.style import COLOURS, SOFT
from dwsep_zoo.report.pictures.parts import Course, RunParts, new_figure

FEW = len(COLOURS)
"""Lines that have colours and names of their own; more of them go from dark to light."""


def recipe_picture(run: RunParts) -> Drawing:
    """The course of a run's recipe."""
    return course_picture(run.course(), run.title)


def course_picture(course: Course, title: str) -> Drawing:
    """Learning rates, and what else changes: the size of the images, the average's memory."""
    panels = [_rates]
    panels += [_sizes] if len(set(course.sizes)) > 1 else []
    panels += [_average] if len(set(course.average)) > 1 else []
    heading = f"Recipe: {course.steps:,} steps of {course.images:,} images"
    figure = new_figure(5.2 * len(panels) + 1.3 * (len(course.rates) > 1), 3.6, title, heading)
    with context():
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, draw in zip(every, panels, strict=True):
            draw(axes, course)
            axes.set(xlabel="epoch")
            axes.set_xlim(0, course.epochs[-1])
    return Drawing(figure, (), heading)


def _rates(axes: Axes, course: Course) -> None:
    parts = list(course.rates.items())
    for number, (label, rates) in enumerate(parts):
        # The first parts of a network have the lowest rates, and are the lightest.
        alpha = 1.0 if len(parts) <= FEW else 0.25 + 0.75 * number / (len(parts) - 1)
        colour = COLOURS[number] if len(parts) <= FEW else COLOURS[0]
        axes.plot(course.epochs, rates, color=colour, alpha=alpha, lw=1.8, label=label)
    if len(parts) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    if course.alone:
        axes.axvline(course.alone, color=SOFT, lw=1, ls=":")
        axes.annotate(
            " all from here on", (course.alone, 1), xycoords=("data", "axes fraction"), va="top"
        )
    axes.set_ylim(bottom=0)
    if course.decays:
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(rates[-1] for _, rates in parts) / 1.5)
        log_ticks(axes.yaxis)
    axes.set_title("learning rate")


def _sizes(axes: Axes, course: Course) -> None:
    axes.plot(course.epochs, course.sizes, color=COLOURS[2], lw=1.8, drawstyle="steps-post")
    axes.set_title("side of the training images, pixels")


def _average(axes: Axes, course: Course) -> None:
    axes.plot(course.epochs, [1 - kept for kept in course.average], color=COLOURS[3], lw=1.8)
    axes.set_yscale("log")
    log_ticks(axes.yaxis)
    axes.set_title("weight of a step in the average")
