"""Pictures that are grids of small ones: a training batch, mistakes, filters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dwsep_zoo.errors import UserError
from dwsep_zoo.report.classes import surest_mistakes
from dwsep_zoo.report.figures.panel import Drawing, context
from dwsep_zoo.report.figures.style import COLOURS, INK, PAGE, SOFT
from dwsep_zoo.report.pictures.parts import (
    Captioned,
    Nothing,
    RunParts,
    bare,
    new_figure,
    shortened,
    show,
)

IN_BATCH, MISTAKES = 32, 24
CELL, LINE = 1.45, 0.14  # inches: side of a picture, height of a line below it
LETTERS = 24  # that fit below a picture
FILTERS, IN_ROW = 64, 16
WRONG = COLOURS[1]


class Words(NamedTuple):
    """A line below a picture."""

    text: str
    colour: str = INK


def batch_picture(run: RunParts) -> Drawing:
    """The first pictures of the first training batch, as the network gets them."""
    images, captions = run.batch()
    count = min(IN_BATCH, len(images))
    heading = (
        f"Training pictures as the network gets them: {count} of the {len(images)} of the first "
        f"batch, {_size(images)}"
    )
    return _grid(run.title, heading, images[:IN_BATCH], _words(captions), 8)


def sheet_picture(title: str, epochs: Sequence[Captioned]) -> Drawing:
    """The same training images in several epochs, as the network gets them.

    Args:
        title: of the data.
        epochs: the images in each.
    """
    images = epochs[0][0]
    heading = (
        f"{len(images)} training pictures as the network gets them in epochs 1 to {len(epochs)}, "
        f"{_size(images)}"
    )
    last = _size(epochs[-1][0])
    heading += "" if last == _size(images) else f" to {last}"
    rows = zip(*(zip(*epoch, strict=True) for epoch in epochs), strict=True)
    cells = [cell for row in rows for cell in row]
    return _grid(title, heading, [i for i, _ in cells], _words([c for _, c in cells]), len(epochs))


def mistakes_picture(run: RunParts) -> Drawing:
    """The wrong predictions of which the network was surest."""
    found = run.predictions()
    wrong = int((found.label != found.predicted).sum())
    if not wrong:
        raise Nothing(f"all {len(found):,} test images are classified correctly")
    if found.probability is None:
        raise UserError("predictions.npz is of an older version, without probabilities")
    places = surest_mistakes(found, MISTAKES)
    sure = found.probability_of(found.predicted)
    words = []
    for place in places.tolist():
        true, said = (run.class_name(int(of[place])) for of in (found.label, found.predicted))
        lines = [
            Words(f"true: {shortened(true, LETTERS - 6)}"),
            Words(f"said: {shortened(said, LETTERS - 12)}, {100 * sure[place]:.0f} %", WRONG),
        ]
        if found.name is not None:
            name = str(found.name[place])
            name = name if PurePath(name).suffix else f"image {name}"
            lines.append(Words(shortened(name, LETTERS - 2, end=True), SOFT))
        words.append(lines)
    heading = f"The {len(places)} surest of {wrong:,} mistakes in {len(found):,} test images"
    return _grid(run.title, heading, run.test_images(places), words, 6)


def filters_picture(run: RunParts) -> Drawing:
    """Filters of the first depthwise layers; blue is positive, red negative, white 0."""
    layers = run.filters()
    if not layers:
        raise Nothing(f"the network has no depthwise convolution (conv={run.record.conv})")
    rows = [math.ceil(min(FILTERS, len(weights)) / IN_ROW) for weights in layers.values()]
    heading = "Depthwise filters, each scaled by its largest weight: blue positive, red negative"
    figure = new_figure(9.0, 0.7 + sum(0.45 + 0.56 * n for n in rows), run.title, heading)
    with context():
        every = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
        for axes, (name, weights) in zip(every, layers.items(), strict=True):
            shown = weights[:FILTERS]
            colours = colormaps["RdBu"].copy()
            colours.set_bad(PAGE)
            bare(axes).imshow(filter_mosaic(shown, IN_ROW), cmap=colours, vmin=-1, vmax=1)
            count, (height, width) = len(weights), weights.shape[1:]
            part = f"{len(shown)} of {count}" if count > len(shown) else str(count)
            axes.set_anchor("W")
            axes.set_title(f"{name}: {part} filters of {height} x {width}", loc="left", color=INK)
    return Drawing(figure, (), heading)


def filter_mosaic(weights: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """(n, h, w) filters, each divided by its largest magnitude, in a grid with gaps of NaN."""
    scale = np.abs(weights).max((1, 2), keepdims=True)
    scaled = weights / np.where(scale > 0, scale, 1)
    rows = math.ceil(len(weights) / columns)
    cells = np.full((rows * columns, weights.shape[1] + 1, weights.shape[2] + 1), np.nan)
    cells[: len(weights), :-1, :-1] = scaled
    grid = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    return grid.reshape(rows * cells.shape[1], -1)[:-1, :-1].astype(np.float32)


def _grid(
    title: str,
    heading: str,
    images: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    words: Sequence[Sequence[Words]],
    columns: int,
) -> Drawing:
    """Images in rows with words below each."""
    columns = min(columns, len(images))
    rows, lines = math.ceil(len(images) / columns), max(map(len, words))
    height = CELL + LINE * lines
    width = max(columns * CELL, 7.0)
    figure = new_figure(width, rows * height + 0.5, title, heading)
    with context():
        axes = bare(figure.subplots())
        step = height / CELL
        for number, image in enumerate(images):
            row, column = divmod(number, columns)
            show(axes, image, column, row * step)
            for line, word in enumerate(words[number]):
                below = row * step + 0.95 + (line + 0.1) * LINE / CELL
                _write(axes, word, column + 0.04, below)
        axes.set(xlim=(0, columns), ylim=(rows * step, 0), aspect="equal")
    return Drawing(figure, (), heading)


def _words(captions: Sequence[str]) -> list[list[Words]]:
    return [[Words(shortened(line, LETTERS)) for line in text.split("\n")] for text in captions]


def _size(images: NDArray[np.float32]) -> str:
    return f"{images.shape[2]} x {images.shape[1]} pixels"


def _write(axes: Axes, word: Words, x: float, y: float) -> None:
    axes.text(x, y, word.text, color=word.colour, fontsize=7.5, va="top", clip_on=False)
