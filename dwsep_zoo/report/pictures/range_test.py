"""The loss of a learning-rate range test."""

from __future__ import annotations

from collections.abc import Sequence

from dwsep_zoo.report.figures.panel import Drawing, context, log_ticks
from dwsep_zoo.report.figures.style import COLOURS, SOFT
from dwsep_zoo.report.pictures.parts import new_figure


def range_picture(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
    title: str,
) -> Drawing:
    """Losses against rates, with the suggested rate marked."""
    heading = "Learning-rate range test"
    figure = new_figure(7, 4, title, heading)
    with context():
        axes = figure.subplots()
        axes.plot(rates, losses, ".", ms=3, color=SOFT, label="loss of a step")
        axes.plot(rates, smoothed, color=COLOURS[0], lw=1.8, label="smoothed")
        if suggestion is not None:
            axes.axvline(
                suggestion, color=COLOURS[1], lw=1.2, ls="--", label=f"suggested: {suggestion:g}"
            )
        axes.set_xscale("log")
        log_ticks(axes.xaxis)
        # The last steps before the end rise without bound.
        usual = max(smoothed[0], *sorted(losses)[: len(losses) // 2])
        axes.set_ylim(0.95 * min(losses), 1.1 * usual)
        axes.set(xlabel="recipe.lr", ylabel="training loss")
        axes.legend()
    return Drawing(figure, (), heading)
