"""What the pictures of a run show, and small helps for drawing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dwsep_zoo.errors import UserError
from dwsep_zoo.report.figures.panel import context
from dwsep_zoo.report.predictions import Predictions
from dwsep_zoo.schema.record import RunRecord

DPI = 110

Captioned = tuple[NDArray[np.float32], Sequence[str]]
"""Images (N, H, W, C) of 0-1, and one or two lines about each."""


class Nothing(UserError):
    """A picture would be empty, and says so."""


@dataclass(frozen=True)
class Course:
    """What a recipe changes in the course of a training, at some of its steps.

    Attributes:
        epochs: where these steps are, from 0 on.
        rates: learning rates by part of the network; ``all`` if they are the same.
        decays: whether the rates decay by a factor, which a logarithmic axis shows.
        sizes: sides of the training images in pixels.
        average: how much of the average of the weights each step keeps; empty: there is none.
        alone: first epochs that train the classifier alone.
        steps: of the whole training.
        images: of a step.
    """

    epochs: Sequence[float]
    rates: Mapping[str, Sequence[float]]
    decays: bool
    sizes: Sequence[int]
    average: Sequence[float]
    alone: int
    steps: int
    images: int


@dataclass(frozen=True)
class RunParts:
    """What a run has left; the functions raise UserError for what it has not, or not any more.

    Attributes:
        epochs: the rows of ``metrics.csv``.
        predictions: those of the test.
        batch: the first training batch.
        test_images: (N, H, W, C) of 0-1, the test images at some positions.
        filters: (channels, height, width) by layer: those of the first depthwise layers.
        course: of the recipe.
    """

    record: RunRecord
    epochs: Sequence[Mapping[str, float]]
    predictions: Callable[[], Predictions]
    batch: Callable[[], Captioned]
    test_images: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    filters: Callable[[], Mapping[str, NDArray[np.float32]]]
    course: Callable[[], Course]

    @property
    def title(self) -> str:
        """Such as ``mobilenet_v1, conv=standard, seed 0, digits``."""
        record = self.record
        seed = None if record.seed is None else f"seed {record.seed}"
        parts = (record.model, f"conv={record.conv}", seed, record.data.name)
        return ", ".join(part for part in parts if part)

    def class_name(self, number: int) -> str:
        """The name of a class, or its number in a record without names."""
        names = self.record.data.class_names
        return names[number] if number < len(names) else str(number)


def new_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """A figure of inches with a heading."""
    with context():
        figure = Figure((width, height), dpi=DPI, layout="constrained")
        figure.suptitle(f"{subtitle}\n{title}", fontsize=10)
    return figure


def bare(axes: Axes) -> Axes:
    """Axes without a frame, for pictures."""
    axes.set_axis_off()
    axes.grid(visible=False)
    return axes


def shortened(text: str, most: int, *, end: bool = False) -> str:
    """At most so many characters; ``end``: those at the end, which tell file names apart."""
    text = text.encode("utf-8", "replace").decode()  # names of files may hold any bytes
    if len(text) <= most:
        return text
    return f"...{text[3 - most :]}" if end else f"{text[: most - 3]}..."


def show(axes: Axes, image: NDArray[np.float32], column: float, row: float) -> None:
    """Draw an image (H, W, C) into the cell of a grid whose cells are 1 wide, rows downwards."""
    grey = image.shape[-1] not in (3, 4)
    axes.imshow(
        image[..., 0] if grey else image,
        extent=(column + 0.04, column + 0.96, row + 0.92, row),
        cmap="gray",
        vmin=0,
        vmax=1,
        aspect="auto",
    )
