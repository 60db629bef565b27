"""Where a network's time goes, as plots."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dwsep_zoo.analysis.roofline import Roofline
from dwsep_zoo.analysis.units import KINDS
from dwsep_zoo.report.html.charts import BAR_STEP, HEIGHT, WIDE, Chart, cycled_marker
from dwsep_zoo.report.html.plot import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    Box,
    Key,
    Label,
    Line,
    Plot,
    Point,
    axis,
)
from dwsep_zoo.report.roofline import KIND_COLOURS

BAR = 20.0  # height


def time_by_kind(roofline: Roofline, rows: Sequence[str]) -> Chart:
    """A stacked bar for each network: which kind of unit its time goes to.

    Args:
        roofline: of all networks.
        rows: for each network, the id of its row.
    """
    networks = roofline.networks
    height = BAR_STEP * len(networks) + TOP + BOTTOM
    longest = max(network.sum_ms for network in networks) or 1.0
    x = Axis("milliseconds of one batch", 0, longest * 1.02, LEFT, WIDE - RIGHT)
    boxes, labels = [], []
    for place, (network, row) in enumerate(zip(networks, rows, strict=True)):
        top = TOP + BAR_STEP * place
        title = f"{network.name}: {network.sum_ms:.3f} ms"
        labels.append(Label(LEFT, top + 14, title))
        start = 0.0
        for unit in network.units:
            left, right = x.at(start), x.at(start + unit.time_ms)
            start += unit.time_ms
            share = unit.time_ms / network.sum_ms if network.sum_ms else 0.0
            text = (
                f"{network.name}, {unit.kind}: {unit.time_ms:.3g} ms ({share:.0%}), "
                f"{unit.macs / 1e6:,.4g} M MACs, {unit.bound}"
            )
            if unit.layers:
                text += f", {unit.attained:.0%} of the ceiling"
            fits = right - left > 7.2 * len(unit.kind) + 6
            label = unit.kind if fits else ""
            style = kind_class(unit.kind)
            boxes.append(Box(left, top + 20, right - left, BAR, style, text, label, row))
    found = {unit.kind for network in networks for unit in network.units}
    plot = Plot(
        "Time by kind of unit",
        "",
        WIDE,
        height,
        x,
        None,
        boxes=tuple(boxes),
        labels=tuple(labels),
    )
    return Chart("Time by kind of unit", (plot,), _kind_keys(found))


def roof(roofline: Roofline, rows: Sequence[str]) -> Chart | None:
    """Arithmetic rate of every layer that multiplies, against intensity, below the ceilings."""
    shapes = [cycled_marker(place) for place in range(len(roofline.networks))]
    layers = [
        (network, shape, row, layer, 2e-6 * layer.macs * roofline.batch_size / layer.time_ms)
        for network, shape, row in zip(roofline.networks, shapes, rows, strict=True)
        for layer in network.layers
        if layer.macs and layer.time_ms
    ]
    if not layers:
        return None
    peaks = roofline.peaks
    rates = sorted(bandwidth.gb_s for bandwidth in peaks.bandwidths)
    wide, high = WIDE, HEIGHT * 1.2
    intensities = [layer.intensity for *_, layer, _ in layers]
    ridge = peaks.gflop_s / rates[0] if rates else intensities[0]
    x = axis("intensity, FLOP per byte", [*intensities, ridge], LEFT, wide - RIGHT, log=True)
    y = axis(
        "GFLOP/s", [peaks.gflop_s, *(rate for *_, rate in layers)], high - BOTTOM, TOP, log=True
    )
    lines = []
    for rate, name in ((rates[0], "slowest"), (rates[-1], "fastest")) if rates else ():
        start = x.clip(y.low / rate)
        bend = max(x.clip(peaks.gflop_s / rate), start)
        ends = [(v, min(peaks.gflop_s, v * rate)) for v in (start, bend, x.high)]
        text = f"ceiling: {peaks.gflop_s:.4g} GFLOP/s, {name} bandwidth {rate:.4g} GB/s"
        lines.append(Line(tuple((x.at(a), y.at(y.clip(b))) for a, b in ends), "front", text))
    marks = tuple(
        Point(
            x.at(layer.intensity),
            y.at(rate),
            shape,
            kind_class(layer.kind),
            f"{network.name}, {layer.name} ({layer.kind}): {rate:.3g} GFLOP/s, "
            f"{layer.time_ms:.3g} ms, {layer.bound}, {layer.attained:.0%} of the ceiling",
            row,
        )
        for network, shape, row, layer, rate in layers
    )
    keys = (
        *_kind_keys({layer.kind for *_, layer, _ in layers}),
        *(
            Key("ink", network.name, marker=shape)
            for network, shape in zip(roofline.networks, shapes, strict=True)
        ),
        Key("front", "ceilings at the fastest and slowest bandwidth", line=True),
    )
    plot = Plot("Each layer below the ceilings", "", wide, high, x, y, tuple(lines), points=marks)
    return Chart("Roofline", (plot,), keys)


def _kind_keys(found: Collection[str]) -> tuple[Key, ...]:
    return tuple(Key(kind_class(kind), kind) for kind in KINDS if kind in found)


def kind_class(kind: str) -> str:
    """The CSS class of a kind of unit."""
    return f"kind{list(KIND_COLOURS).index(kind)}"
