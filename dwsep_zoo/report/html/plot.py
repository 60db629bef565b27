"""A plot as geometry: everything in pixels, ready to be written as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 10.0, 42.0  # margins of a plot with two axes
MOST_TICKS = 7


@dataclass(frozen=True)
class Axis:
    """From values to pixels.

    Attributes:
        low: value at the pixel ``start``.
        high: value at the pixel ``end``.
        whole: ticks are at whole numbers.
    """

    label: str
    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def clip(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    @cached_property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Pixels and texts."""
        inside = [v for v in self._tick_values() if self.low <= v <= self.high]
        return tuple((self.at(v), f"{v:,.10g}") for v in inside)

    def _tick_values(self) -> Sequence[float]:
        from matplotlib.ticker import LogLocator, MaxNLocator

        if self.log and self.high / self.low > 4:
            choices: tuple[Sequence[float], ...] = ((1, 2, 5), (1, 3), (1,))
            for steps in choices:
                values = LogLocator(subs=steps, numticks=99).tick_values(self.low, self.high)
                if sum(self.low <= v <= self.high for v in values) <= MOST_TICKS:
                    break
            return [float(v) for v in values]
        nice = MaxNLocator(nbins=MOST_TICKS - 2, steps=[1, 2, 2.5, 5, 10], integer=self.whole)
        return [round(float(v), 10) + 0.0 for v in nice.tick_values(self.low, self.high)]  # no -0


@dataclass(frozen=True)
class Line:
    """A polyline; ``style`` is a list of CSS classes."""

    points: tuple[tuple[float, float], ...]
    style: str
    text: str = ""

    @property
    def path(self) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Point:
    """A marker with a text that is shown for it; ``row`` is the id of a table's row."""

    x: float
    y: float
    marker: str
    style: str
    text: str
    row: str = ""


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    style: str
    text: str
    label: str = ""
    row: str = ""


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Key:
    """A line of a legend: a marker, a line or, with neither, a patch of colour."""

    style: str
    text: str
    marker: str = ""
    line: bool = False


@dataclass(frozen=True)
class Plot:
    """Drawn in this order: lines, boxes, labels, points."""

    title: str
    note: str
    width: float
    height: float
    x: Axis
    y: Axis | None
    lines: tuple[Line, ...] = ()
    boxes: tuple[Box, ...] = ()
    labels: tuple[Label, ...] = ()
    points: tuple[Point, ...] = ()


def axis(
    label: str,
    values: Iterable[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    whole: bool = False,
    margin: float = 0.08,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Axis:
    """An axis on which all ``values`` lie, with a share of free space on both sides.

    Args:
        label: what is shown, with its unit.
        values: at least one; positive if ``log``.
        start: pixel of the low end.
        end: pixel of the high end.
        log: logarithmic.
        whole: ticks are at whole numbers.
        margin: relative to the range.
        limits: which the axis does not pass, as no value does.
    """
    values = list(values)
    low, high = min(values), max(values)
    if log:
        factor = max((high / low) ** margin, 1.15)
        return Axis(label, low / factor, high * factor, start, end, log=True)
    space = (high - low) * margin or max(abs(low) * margin, 0.01)
    low, high = max(low - space, limits[0]), min(high + space, limits[1])
    if low >= high:  # all values at or beyond one limit
        low, high = low - space, high + space
    return Axis(label, low, high, start, end, whole=whole)


def marker_path(marker: str, size: float = 9.0) -> str:
    """One of matplotlib's markers around the origin, as the path of SVG."""
    from matplotlib.markers import MarkerStyle
    from matplotlib.transforms import Affine2D

    style = MarkerStyle(marker)
    turned = style.get_transform() + Affine2D().scale(size, -size)
    parts: Any = style.get_path().transformed(turned).to_polygons()  # arrays (N, 2)
    return "".join("M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in part) + "Z" for part in parts)
