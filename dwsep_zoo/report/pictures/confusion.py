"""Which classes are taken for which, and the accuracy of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dwsep_zoo.report.classes import confusion_matrix, confusions, per_class
from dwsep_zoo.report.figures.panel import Drawing, context
from dwsep_zoo.report.figures.style import COLOURS, INK, PAGE, SOFT
from dwsep_zoo.report.pictures.parts import RunParts, new_figure, shortened
from dwsep_zoo.report.predictions import Predictions
from dwsep_zoo.schema.record import PerClass

MOST_CLASSES = 25  # in a matrix that can be read
LISTED = 20  # confusions, and classes, where there are more
LETTERS = 20
BLUE, VERMILION = COLOURS[:2]


def confusion_picture(run: RunParts) -> Drawing:
    """A matrix and the accuracy of each class; for many classes the worst of both, by name."""
    found = run.predictions()
    num_classes = max(
        len(run.record.data.class_names), int(max(found.label.max(), found.predicted.max())) + 1
    )
    names = [shortened(run.class_name(number), LETTERS) for number in range(num_classes)]
    scores = per_class(found, num_classes)
    heading = (
        f"Test of {len(found):,} images: accuracy {100 * found.accuracy:.2f} %, balanced "
        f"{100 * (scores.balanced_acc or 0):.2f} %, macro-F1 {100 * (scores.macro_f1 or 0):.2f} %"
    )
    few = num_classes <= MOST_CLASSES
    side = 1.6 + 0.36 * max(num_classes, 6) if few else 6.4
    figure = new_figure(side + 4.0 if few else 11.0, side, run.title, heading)
    tested = [n for n, images in enumerate(scores.images) if images]
    with context():
        left, right = figure.subplots(1, 2, width_ratios=[side - 0.6, 3.4] if few else [1.2, 1])
        if few:
            _matrix(left, found, names)
            _bars(right, scores, tested)
            right.set(yticks=[], ylim=left.get_ylim())
        else:
            _listed(left, found, names)
            worst = sorted(tested, key=lambda n: (scores.accuracy[n] or 0.0, -scores.images[n]))
            worst = worst[:LISTED]
            _bars(right, scores, worst, places=range(len(worst)))
            right.set(ylim=(len(worst) - 0.4, -0.6))
            right.set_yticks(range(len(worst)), [names[n] for n in worst])
            right.set_title(f"the {len(worst)} worst of {len(tested)} classes")
    return Drawing(figure, (), heading)


def _matrix(axes: Axes, found: Predictions, names: Sequence[str]) -> None:
    """Row by row in per cent of the images of a class, right ones blue and wrong ones orange."""
    counts = confusion_matrix(found, len(names))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = np.eye(len(names), dtype=bool)
    for map_name, cells in (("Blues", right), ("Oranges", ~right)):
        some = np.where(cells & (counts > 0), share, np.nan)
        axes.imshow(some, cmap=colormaps[map_name], vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 4 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true", title="per cent of the images of a class")
    for row, column in np.argwhere(counts).tolist():
        part = share[row, column]
        text = f"{100 * part:.0f}" if part >= 0.01 else "<1"
        colour = PAGE if part > 0.5 else INK if row == column or part > 0.2 else VERMILION
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)


def _listed(axes: Axes, found: Predictions, names: Sequence[str]) -> None:
    """The most frequent confusions by name."""
    worst = confusions(found, LISTED)
    axes.barh(range(len(worst)), [one.images for one in worst], color=VERMILION, height=0.7)
    texts = [f"{names[one.true]} taken for {names[one.predicted]}" for one in worst]
    axes.set_yticks(range(len(worst)), texts)
    for place, one in enumerate(worst):
        text = f" {one.images}, {one.share:.0%} of the class"
        axes.text(one.images, place, text, va="center", color=SOFT, fontsize=7.5)
    axes.yaxis.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="test images", ylim=(max(len(worst), 1) - 0.4, -0.6))
    axes.set_xlim(0, 1.5 * max((one.images for one in worst), default=1))
    axes.set_title(f"the {len(worst)} most frequent confusions")


def _bars(
    axes: Axes, scores: PerClass, numbers: Sequence[int], places: Sequence[int] | None = None
) -> None:
    """The accuracy of each class, with its number of images, at its number or another place."""
    for place, number in zip(places or numbers, numbers, strict=True):
        value = 100 * (scores.accuracy[number] or 0.0)
        axes.barh(place, value, color=BLUE, height=0.7)
        inside = value > 50
        x, side = (value - 1, "right") if inside else (value + 1, "left")
        text = f"{value:.1f} % of {scores.images[number]:,}"
        colour = PAGE if inside else INK
        axes.text(x, place, text, ha=side, va="center", color=colour, fontsize=7.5)
    axes.set(xlim=(0, 100), xlabel="accuracy of each class, %")
    axes.yaxis.grid(visible=False)
