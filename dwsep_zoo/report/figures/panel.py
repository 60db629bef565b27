"""Panels, which are drawn alone or side by side, and figures that know what their marks mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image

from dwsep_zoo.report.figures.style import INK, LINE, SOFT

POINTS = 72  # an inch
RIGHT, TOP, BOTTOM = 8, 8, 38  # margins of a panel alone, in points
WIDE = 360  # points
RC: dict[str, Any] = {
    "svg.fonttype": "none",  # words stay words
    "svg.hashsalt": "dwsep_zoo",  # the same comparison gives the same file
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.titlesize": 8,
    "axes.titlecolor": SOFT,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Mark:
    """A mark of a panel.

    Attributes:
        artist: draws it.
        text: for tooltips and screen readers.
        row: index of the table's row or of the roofline's network; ``None``: of none.
    """

    artist: Artist
    text: str
    row: int | None = None


@dataclass(frozen=True)
class Panel:
    """A plot; ``draw`` fills axes and returns the marks; ``size`` alone is in points."""

    title: str
    draw: Callable[[Axes], list[Mark]]
    note: str = ""
    size: tuple[float, float] = (300, 230)
    left: float = 46

    @property
    def is_wide(self) -> bool:
        return self.size[0] >= WIDE


@dataclass(frozen=True)
class Drawing:
    """A figure with its marks."""

    figure: Figure
    marks: tuple[Mark, ...]
    title: str
    note: str = ""

    def pixels(self) -> NDArray[np.uint8]:
        """Draw as an array ``(height, width, 4)``."""
        canvas: Any = FigureCanvasAgg(self.figure)
        with context():
            canvas.draw()
            self.figure.set_layout_engine("none")  # laid out now
        return np.asarray(canvas.buffer_rgba())

    def png(self) -> bytes:
        """Draw as a file."""
        file = BytesIO()
        Image.fromarray(self.pixels()).save(file, "PNG")
        return file.getvalue()


def context() -> AbstractContextManager[None]:
    """Matplotlib's settings, both while a figure is made and while it is drawn."""
    return mpl.rc_context(RC)  # type: ignore[arg-type]


def alone(panel: Panel) -> Drawing:
    """A panel as a figure of its own, with fixed margins."""
    (width, height), left = panel.size, panel.left
    with context():
        figure = Figure((width / POINTS, height / POINTS))
        share = ((width - left - RIGHT) / width, (height - TOP - BOTTOM) / height)
        marks = panel.draw(figure.add_axes((left / width, BOTTOM / height, *share)))
    return Drawing(figure, tuple(marks), panel.title, panel.note)


def side_by_side(
    panels: Sequence[Panel], title: str, legend: Sequence[Artist], columns: int
) -> Drawing:
    """Panels as one figure with a legend below; drawn without pyplot: no state, no display."""
    rows = -(-len(panels) // columns)
    with context():
        figure = Figure((4.7 * columns, 4.1 * rows + 0.8), dpi=120, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        marks = []
        for own, panel in zip(axes, panels, strict=False):
            marks += panel.draw(own)
            own.set_title(panel.note)
        for unused in axes[len(panels) :]:
            unused.remove()
        figure.suptitle(title, fontsize=11)
        figure.legend(handles=legend, loc="outside lower center", ncols=2 * columns)
    return Drawing(figure, tuple(marks), title)


def log_ticks(axis: Axis) -> None:
    """Label 1, 2, 5, 10 instead of powers of ten; more of them where the axis is short."""
    low, high = axis.get_view_interval()
    span = high / low
    short: Sequence[float] = (1, 1.5, 2, 3, 4, 5, 6, 8) if span < 4 else (1, 2, 5)
    axis.set_major_locator(LogLocator(subs=short if span < 200 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
