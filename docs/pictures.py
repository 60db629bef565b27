"""The pictures of the operators: drawn from the operators themselves.

Each operator is built as ``conv=`` builds it. One square of a map is a pixel, one square of a
matrix is a weight: there are as many as the layer has. What is dark takes part in the marked output
pixel, which is asked of the gradients, not known beforehand.
"""

from __future__ import annotations

from collections import OrderedDict
from xml.etree import ElementTree as ET

import torch
from torch import Tensor, nn

from dwsep_zoo import create_conv
from dwsep_zoo.nn.layers import Layers, ReLU

CHANS, KERNEL, SIZE = 3, 3, 7
DARK = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito's, a colour an input channel
PALE = ("#CFE3F0", "#F9DDC9", "#CFEBE2")
INK, GREY, EMPTY = "#222222", "#666666", "#F2F2F2"
SQUARE, GAP = 11, 14
TOP, MARGIN, BETWEEN = 64, 16, 54


def operators() -> dict[str, nn.Sequential]:
    """Layers, one behind the other, by the name of the picture."""
    made = {
        name: create_conv(name)(
            CHANS, CHANS, KERNEL, 1, layers=Layers(act=ReLU, padding="symmetric"), mid="none"
        )
        for name in ("standard", "depthwise_separable", "spatially_separable")
    }
    separable = made["depthwise_separable"]
    return {
        "standard": made["standard"],
        **{
            name: nn.Sequential(OrderedDict({name: separable.get_submodule(name)}))
            for name in ("depthwise", "pointwise")
        },
        "depthwise_separable": separable,
        "spatially_separable": made["spatially_separable"],
    }


def draw(name: str) -> str:
    """One operator as SVG: input, weights, map, ... output."""
    operator = operators()[name]
    for parameter in operator.parameters():
        nn.init.ones_(parameter)  # sums of ones: nothing cancels
    maps = [torch.ones(1, CHANS, SIZE, SIZE, requires_grad=True)]
    for layer in operator:
        maps.append(layer(maps[-1]))
        maps[-1].retain_grad()
    maps[-1][0, 0, SIZE // 2, SIZE // 2].backward()

    svg = ET.Element("svg", xmlns="http://www.w3.org/2000/svg")
    # A title is what a screen reader reads.
    ET.SubElement(svg, "title").text = name.replace("_", " ") + " convolution"
    background = ET.SubElement(svg, "rect", width="100%", height="100%", fill="#FFFFFF")
    x, bottom = MARGIN, 0
    for i, feature_map in enumerate(maps):
        if i > 0:
            layer_name, layer = list(operator.named_children())[i - 1]
            assert isinstance(layer, nn.Conv2d)
            right, low = _weights(svg, x, layer_name, layer)
            x, bottom = right + BETWEEN, max(bottom, low)
            _arrow(svg, right)
        heading = "input" if i == 0 else "output" if i == len(maps) - 1 else "between"
        right, low = _map(svg, x, heading, feature_map.grad)
        bottom = max(bottom, low)
        if i < len(maps) - 1:
            _arrow(svg, right)
            x = right + BETWEEN
        else:
            x = right
    width, height = x + MARGIN, bottom + MARGIN
    svg.attrib.update(viewBox=f"0 0 {width} {height}", width=str(width), height=str(height))
    background.attrib.update(width=str(width), height=str(height))
    ET.indent(svg, " ")
    return ET.tostring(svg, encoding="unicode") + "\n"


def _map(svg: ET.Element, x: int, heading: str, gradient: Tensor | None) -> tuple[int, int]:
    """The channels of a feature map, one below the other."""
    assert gradient is not None
    seen = gradient[0] != 0
    _text(svg, x, heading, f"{CHANS} channels")
    for channel, row, column in torch.cartesian_prod(*map(torch.arange, seen.shape)).tolist():
        # From the output on, a channel is no input channel any more, but its colour tells it apart.
        fill = (DARK if seen[channel, row, column] else PALE)[channel]
        top = TOP + channel * (SIZE * SQUARE + GAP) + row * SQUARE
        _square(svg, x + column * SQUARE, top, fill, "pixel")
    return x + SIZE * SQUARE, TOP + CHANS * (SIZE * SQUARE + GAP) - GAP


def _weights(svg: ET.Element, x: int, name: str, layer: nn.Conv2d) -> tuple[int, int]:
    """A matrix of kernels: a row is an output channel, a column an input channel."""
    outputs, per_group, height, width = layer.weight.shape
    assert layer.weight.grad is not None
    used = layer.weight.grad != 0
    block_x, block_y = width * SQUARE + GAP // 2, height * SQUARE + GAP // 2
    words = f"{layer.weight.numel()} weights"
    _text(svg, x, name, words)
    for out in range(outputs):
        first = out // (outputs // layer.groups) * per_group
        for channel in range(layer.in_channels):
            own = first <= channel < first + per_group
            for row in range(height):
                for column in range(width):
                    at = x + channel * block_x + column * SQUARE, TOP + out * block_y + row * SQUARE
                    if not own:
                        _square(svg, *at, EMPTY, "none")
                        continue
                    dark = used[out, channel - first, row, column]
                    _square(svg, *at, (DARK if dark else PALE)[channel], "weight")
    right = x + layer.in_channels * block_x - GAP // 2
    return max(right, x + 6 * len(words)), TOP + outputs * block_y - GAP // 2


def _square(svg: ET.Element, x: int, y: int, fill: str, kind: str) -> None:
    side = str(SQUARE - 1)
    ET.SubElement(
        svg, "rect", {"class": kind}, x=str(x), y=str(y), width=side, height=side, fill=fill
    )


def _text(svg: ET.Element, x: int, heading: str, words: str) -> None:
    for y, size, fill, line in ((24, 14, INK, heading), (44, 12, GREY, words)):
        element = ET.SubElement(svg, "text", x=str(x), y=str(y), fill=fill)
        element.attrib.update({"font-size": str(size), "font-family": "sans-serif"})
        element.text = line


def _arrow(svg: ET.Element, right: int) -> None:
    y = TOP + SIZE * SQUARE // 2
    start, end = right + 12, right + BETWEEN - 12
    path = f"M{start} {y}H{end}M{end - 6} {y - 5}L{end} {y}L{end - 6} {y + 5}"
    ET.SubElement(svg, "path", {"stroke-width": "1.5"}, d=path, stroke=GREY, fill="none")
