"""The roofline as a picture: what each layer attains, and where the time goes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dwsep_zoo.analysis.bottleneck import conditions
from dwsep_zoo.analysis.roofline import NetworkTime, Roofline
from dwsep_zoo.analysis.units import KINDS, REST
from dwsep_zoo.report.figure import COLOURS, GREY, MARKERS, MORE_MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, BLACK = COLOURS
KIND_COLOURS = {
    "depthwise": VERMILION,
    "pointwise": BLUE,
    "dense": BLACK,
    "expansion": SKY,
    "norm/act": ORANGE,
    "squeeze-excite": PURPLE,
    "head": GREEN,
    # Okabe and Ito have seven.
    "stem": "#882255",
    "grouped": "#999933",
    "shortcut": "#DDCC77",
    "pooling": "#44AA99",
    REST: "#CCCCCC",
}
LARGEST, SMALLEST = 180.0, 14.0  # areas of markers, points squared
BAR = 0.5  # of the distance between bars, which have a line of text above
LETTER = 0.0105  # of the longest bar: a part too short for its words has none


def roofline_figure(roofline: Roofline) -> Figure:
    """FLOP/s against FLOP/byte of each layer under the ceilings; below, the time by kind of unit.

    A colour is a kind of unit, a marker a network, the area of a marker its layer's time. Layers
    without multiply-adds are in the bars alone. Drawn without pyplot: no state, no display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = (5.0, 0.9 + 0.6 * len(roofline.networks))  # inches
    picture = Figure(figsize=(12.5, sum(heights) + 0.6), dpi=120, layout="constrained")
    FigureCanvasAgg(picture)
    layers, bars = picture.subplots(2, 1, height_ratios=heights)
    markers = _markers(roofline.networks)
    _layers_panel(layers, roofline, markers)
    _bars_panel(bars, roofline)
    picture.suptitle("Roofline of each layer, and time by kind of unit", fontsize=11)
    picture.supxlabel(conditions(roofline), fontsize=8, color=GREY)
    picture.legend(
        handles=_legend(roofline, markers), loc="outside right center", frameon=False, fontsize=9
    )
    return picture


def _layers_panel(axes: Axes, roofline: Roofline, markers: Mapping[str, str]) -> None:
    points = [
        (
            layer.intensity,
            2 * layer.macs * roofline.batch_size / layer.time_ms / 1e6,
            layer,
            network,
        )
        for network in roofline.networks
        for layer in network.layers
        if layer.macs and layer.time_ms
    ]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("intensity, FLOP per byte")
    axes.set_ylabel("attained, GFLOP/s")
    axes.set_title(
        "a marker is a layer, its area the layer's time; layers without MACs are not shown",
        fontsize=8,
        color=GREY,
    )
    axes.grid(visible=True, color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    longest = max((layer.time_ms for _, _, layer, _ in points), default=1.0)
    for x, y, layer, network in sorted(points, key=lambda point: -point[2].time_ms):
        axes.scatter(
            x,
            y,
            s=max(SMALLEST, LARGEST * layer.time_ms / longest),
            color=KIND_COLOURS[layer.kind],
            marker=markers[network.name],
            alpha=0.75,
            linewidths=0.5,
            edgecolors="white",
            zorder=3,
        )
    low = min((x for x, *_ in points), default=0.1) / 2
    high = 2 * max([x for x, *_ in points] + [_ridge(roofline)])
    axes.set_xlim(low, high)
    _ceilings(axes, roofline, low, high)
    axes.set_ylim(top=1.7 * max(axes.get_ylim()[1], roofline.peaks.gflop_s))


def _ridge(roofline: Roofline) -> float:
    """FLOP per byte from which on even the slowest memory does not limit."""
    peaks = roofline.peaks
    return peaks.gflop_s / peaks.bandwidth(peaks.bandwidths[-1].traffic)


def _ceilings(axes: Axes, roofline: Roofline, low: float, high: float) -> None:
    """The roofs of the smallest and of the largest traffic that was measured."""
    peaks = roofline.peaks
    sizes = (peaks.bandwidths[0].traffic, peaks.bandwidths[-1].traffic)
    for size, style in zip(sizes, ("--", "-"), strict=True):
        gb_s = peaks.bandwidth(size)
        ridge = min(max(peaks.gflop_s / gb_s, low), high)
        xs = [low, ridge, high]
        axes.plot(
            xs,
            [min(peaks.gflop_s, gb_s * x) for x in xs],
            color=GREY,
            ls=style,
            lw=1.2,
            label=f"{gb_s:.0f} GB/s at {_bytes(size)}",
        )
    axes.annotate(
        f"{peaks.gflop_s:.0f} GFLOP/s",
        (ridge, peaks.gflop_s),
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=8,
        color=GREY,
    )
    axes.legend(loc="lower right", frameon=False, fontsize=8, labelcolor=GREY)


def _bars_panel(axes: Axes, roofline: Roofline) -> None:
    networks = roofline.networks
    longest = max(network.sum_ms for network in networks) or 1.0
    for number, network in enumerate(networks):
        start = 0.0
        units = {unit.kind: unit for unit in network.units}
        for kind in (kind for kind in KINDS if kind in units):
            length = units[kind].time_ms
            colour = KIND_COLOURS[kind]
            axes.barh(number, length, BAR, start, color=colour, edgecolor="white", lw=0.5)
            share = f"{100 * length / (network.sum_ms or 1):.0f} %"
            fitting = (t for t in (f"{kind} {share}", share) if len(t) * LETTER * longest < length)
            if text := next(fitting, ""):
                axes.text(
                    start + length / 2,
                    number,
                    text,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=_ink(colour),
                )
            start += length
        name = f"{network.name}: {start:.3g} ms"
        axes.text(0, number - BAR / 2, name, ha="left", va="bottom", fontsize=9)
    axes.set_yticks([])
    axes.set_ylim(len(networks) - 0.6, -0.75)  # the first one on top, with its name
    axes.set_xlabel("time of one batch, ms")
    axes.grid(visible=True, axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(roofline: Roofline, markers: Mapping[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    used = {unit.kind for network in roofline.networks for unit in network.units}
    kinds = [Patch(color=KIND_COLOURS[kind], label=kind) for kind in KINDS if kind in used]
    networks = [
        Line2D([], [], color=GREY, marker=marker, ls="none", ms=7, label=name)
        for name, marker in markers.items()
    ]
    return [*kinds, *networks]


def _markers(networks: Sequence[NetworkTime]) -> dict[str, str]:
    """A conv type's own marker, if a network is named so; a free one otherwise."""
    own = [MARKERS.get(network.name) for network in networks]
    every = dict.fromkeys((*MARKERS.values(), *MORE_MARKERS))
    free = itertools.cycle([marker for marker in every if marker not in own])
    return {n.name: marker or next(free) for n, marker in zip(networks, own, strict=True)}


def _ink(colour: str) -> str:
    """Black or white, whichever is read more easily on this colour."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"


def _bytes(size: int) -> str:
    power = int(math.log2(size)) // 10
    return f"{size / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
