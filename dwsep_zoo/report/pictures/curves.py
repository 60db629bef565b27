"""Learning curves of one run."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dwsep_zoo.report.figures.curves import LOG_LOSS, SHARES, mixes
from dwsep_zoo.report.figures.panel import Drawing, context, log_ticks
from dwsep_zoo.report.figures.style import COLOURS, SOFT
from dwsep_zoo.report.pictures.parts import Nothing, RunParts, new_figure

SPLITS = {"train": ("training", COLOURS[1]), "val": ("validation", COLOURS[0])}


def curves_picture(run: RunParts) -> Drawing:
    """Loss, accuracy and learning rate by epoch, with the epoch that was tested."""
    if not run.epochs:
        raise Nothing("metrics.csv has no epoch")
    heading = f"Learning curves, {len(run.epochs)} epochs"
    figure = new_figure(10.5, 3.6, run.title, heading)
    with context():
        for axes, name in zip(figure.subplots(1, 3), ("acc", "loss", "lr"), strict=True):
            _draw(axes, run, name)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return Drawing(figure, (), heading)


def _draw(axes: Axes, run: RunParts, name: str) -> None:
    scale = 100 if name == "acc" else 1
    drawn = []
    for split, (label, colour) in SPLITS.items():
        key = f"{split}/{name}"
        points = [(row["epoch"], scale * row[key]) for row in run.epochs if key in row]
        if points:
            marker = "o" if len(points) < 3 else ""
            axes.plot(*zip(*points, strict=True), color=colour, lw=1.8, marker=marker, label=label)
            drawn += [value for _, value in points]
    if best := run.record.best_epoch:
        axes.axvline(best, color=SOFT, lw=1, ls=":", label=f"tested: epoch {best}")
    titles = {"acc": "accuracy, %", "loss": "loss", "lr": "learning rate"}
    if mixes(run.record):
        titles["acc"] = f"accuracy, %\n(training: {SHARES})"
    axes.set(xlabel="epoch", title=titles[name])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if name == "loss" and drawn and 0 < LOG_LOSS * min(drawn) < max(drawn):
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
