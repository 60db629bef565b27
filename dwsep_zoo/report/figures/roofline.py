"""The roofline: what each layer attains under the ceilings, and where the time goes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dwsep_zoo.analysis.bottleneck import conditions
from dwsep_zoo.report.figures.panel import WIDE, Drawing, Mark, Panel, context, log_ticks
from dwsep_zoo.report.figures.style import MARKERS, MORE_MARKERS, PAGE, SOFT, THEME, key
from dwsep_zoo.schema.roofline import KINDS, REST, NetworkTime, Roofline

KIND_COLOURS = {
    kind: THEME[name][0]
    for kind, name in {
        "depthwise": "vermilion",
        "pointwise": "blue",
        "dense": "ink",
        "expansion": "sky",
        "norm/act": "orange",
        "squeeze-excite": "purple",
        "head": "green",
        "stem": "wine",
        "grouped": "olive",
        "shortcut": "sand",
        "pooling": "teal",
        REST: "grey",
    }.items()
}
LARGEST, SMALLEST = 13.0, 4.0  # diameters of markers, points
BAR = 0.5  # of the distance between bars, which have a line of text above
LETTER = 0.5  # of the size of a letter: its width on average, at least


def roofline_panels(roofline: Roofline) -> list[Panel]:
    """FLOP/s against FLOP/byte of each layer under the ceilings, and the time by kind of unit."""
    note = "a marker is a layer, its area the layer's time; layers without MACs are not shown"
    height = 60 + 46 * len(roofline.networks)
    return [
        Panel("Time by kind of unit", partial(_draw_bars, roofline), "", (WIDE, height), 8),
        Panel("Each layer below the ceilings", partial(_draw_layers, roofline), note, (WIDE, 290)),
    ]


def roofline_legend(roofline: Roofline) -> list[Artist]:
    """A colour is a kind of unit, a marker a network."""
    used = {unit.kind for network in roofline.networks for unit in network.units}
    return [
        *(Patch(color=KIND_COLOURS[kind], label=kind) for kind in KINDS if kind in used),
        *(key(marker, SOFT, name) for name, marker in _markers(roofline.networks).items()),
    ]


def roofline_figure(roofline: Roofline) -> Drawing:
    """The panels one above the other."""
    bars, layers = roofline_panels(roofline)
    heights = (5.0, 0.9 + 0.6 * len(roofline.networks))  # inches
    title = "Roofline of each layer, and time by kind of unit"
    with context():
        figure = Figure((12.5, sum(heights) + 0.6), dpi=120, layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=heights)
        marks = (*layers.draw(above), *bars.draw(below))
        above.set_title(layers.note)
        figure.suptitle(title, fontsize=11)
        figure.supxlabel(conditions(roofline), fontsize=8, color=SOFT)
        handles = roofline_legend(roofline)
        figure.legend(handles=handles, loc="outside right center")
    return Drawing(figure, marks, title)


def _draw_layers(roofline: Roofline, axes: Axes) -> list[Mark]:
    axes.set(xscale="log", yscale="log", xlabel="intensity, FLOP per byte")
    axes.set_ylabel("attained, GFLOP/s")
    markers = _markers(roofline.networks)
    layers = [
        (index, network, layer)
        for index, network in enumerate(roofline.networks)
        for layer in network.layers
        if layer.macs and layer.time_ms
    ]
    longest = max((layer.time_ms for *_, layer in layers), default=1.0)
    marks = []
    for index, network, layer in sorted(layers, key=lambda found: -found[2].time_ms):
        rate = 1e-6 * layer.intensity * layer.bytes / layer.time_ms
        (artist,) = axes.plot(
            layer.intensity,
            rate,
            markers[network.name],
            color=KIND_COLOURS[layer.kind],
            markersize=max(SMALLEST, LARGEST * math.sqrt(layer.time_ms / longest)),
            markeredgecolor=PAGE,
            markeredgewidth=0.5,
            alpha=0.8,
            zorder=3,
        )
        text = (
            f"{network.name}, {layer.name} ({layer.kind}): {rate:.3g} GFLOP/s, "
            f"{layer.time_ms:.3g} ms, {layer.bound}, {layer.attained:.0%} of the ceiling"
        )
        marks.append(Mark(artist, text, index))
    peaks = roofline.peaks
    ridge = peaks.gflop_s / peaks.bandwidths[-1].gb_s  # of the slowest memory
    intensities = [layer.intensity for *_, layer in layers]
    axes.set_xlim(min(intensities, default=0.1) / 2, 2 * max([*intensities, ridge]))
    marks += _ceilings(axes, roofline)
    axes.set_ylim(top=1.7 * max(axes.get_ylim()[1], peaks.gflop_s))
    log_ticks(axes.xaxis)
    log_ticks(axes.yaxis)
    return marks


def _ceilings(axes: Axes, roofline: Roofline) -> list[Mark]:
    """The roofs of the smallest and of the largest traffic that was measured."""
    low, high = axes.get_xlim()
    peak, bandwidths = roofline.peaks.gflop_s, roofline.peaks.bandwidths
    marks, lines = [], []
    for measured, style in ((bandwidths[0], "--"), (bandwidths[-1], "-")):
        ridge = min(max(peak / measured.gb_s, low), high)
        ends = [low, ridge, high]
        (line,) = axes.plot(
            ends, [min(peak, measured.gb_s * x) for x in ends], color=SOFT, ls=style, lw=1.2
        )
        line.set_label(f"{measured.gb_s:.0f} GB/s at {_bytes(measured.traffic)}")
        lines.append(line)
        marks.append(Mark(line, f"ceiling: {peak:.4g} GFLOP/s, {line.get_label()}"))
    axes.text(high, 1.1 * peak, f"{peak:.0f} GFLOP/s", fontsize=8, color=SOFT, ha="right")
    axes.legend(handles=lines, loc="lower right", fontsize=8, labelcolor=SOFT)
    return marks


def _draw_bars(roofline: Roofline, axes: Axes) -> list[Mark]:
    networks = roofline.networks
    longest = max(network.sum_ms for network in networks) or 1.0
    axes.set_xlim(0, 1.02 * longest)
    axes.set_ylim(len(networks) - 0.6, -0.75)  # the first one on top, with its name
    axes.set_yticks([])
    axes.set_xlabel("time of one batch, ms")
    axes.spines["left"].set_visible(False)
    width = 72 * axes.figure.get_figwidth() * axes.get_position().width  # type: ignore[union-attr]
    marks: list[Mark] = []
    for number, network in enumerate(networks):
        start = 0.0
        units = {unit.kind: unit for unit in network.units}
        for unit in (units[kind] for kind in KINDS if kind in units):
            length, share = unit.time_ms, unit.time_ms / (network.sum_ms or 1)
            colour = KIND_COLOURS[unit.kind]
            (bar,) = axes.barh(number, length, BAR, start, color=colour, edgecolor=PAGE, lw=0.5)
            text = (
                f"{network.name}, {unit.kind}: {length:.3g} ms ({share:.0%}), "
                f"{unit.macs / 1e6:,.4g} M MACs, {unit.bound}"
            )
            if unit.layers:
                text += f", {unit.attained:.0%} of the ceiling"
            marks.append(Mark(bar, text, number))
            room = width * length / longest / (8 * LETTER) - 2
            for words in (f"{unit.kind} {share:.0%}", f"{share:.0%}"):
                if len(words) < room:
                    place = (start + length / 2, number)
                    axes.text(*place, words, ha="center", va="center", size=8, color=_ink(colour))
                    break
            start += length
        axes.text(
            0, number - BAR / 2 - 0.05, f"{network.name}: {start:.3g} ms", va="bottom", size=9
        )
    return marks


def _markers(networks: Sequence[NetworkTime]) -> dict[str, str]:
    """A conv type's own marker, if a network is named so; a free one otherwise."""
    own = [MARKERS.get(network.name) for network in networks]
    every = dict.fromkeys((*MARKERS.values(), *MORE_MARKERS))
    free = itertools.cycle([marker for marker in every if marker not in own])
    return {n.name: marker or next(free) for n, marker in zip(networks, own, strict=True)}


def _ink(colour: str) -> str:
    """Light or dark, whichever is read more easily on this colour."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    return THEME["over-dark" if dark else "over-light"][0]


def _bytes(size: int) -> str:
    power = int(math.log2(size)) // 10
    return f"{size / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
