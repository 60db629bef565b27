"""The arithmetic of one convolution, and of the units that ``conv=`` swaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dwsep_zoo.analysis.count import Count, LayerCount


@dataclass(frozen=True)
class ConvCost:
    """The cost of one way from M to N channels."""

    name: str
    formula: str
    weights: int
    macs: int


def conv_costs(
    in_chans: int, out_chans: int, kernel_size: int, stride: int = 1, size: int = 224
) -> list[ConvCost]:
    """Weights and multiply-adds of the standard convolution and of its factorisations.

    Args:
        in_chans: M.
        out_chans: N.
        kernel_size: K, odd.
        stride: stride of the whole operator.
        size: height and width of the input in pixels; the padding keeps size / stride.
    """
    m, n, k = in_chans, out_chans, kernel_size
    out = -(-size // stride)
    columns = k * m * n  # K x 1, stride (s, 1), M to N: its output is still wide
    rows = k * n * n  # 1 x K, stride (1, s), N to N
    costs = [
        ConvCost(name, formula, weights, weights * out * out)
        for name, formula, weights in (
            ("standard", "K^2 M N", k * k * m * n),
            ("depthwise alone", "K^2 M", k * k * m),
            ("pointwise alone", "M N", m * n),
            ("depthwise separable", "K^2 M + M N", k * k * m + m * n),
        )
    ]
    macs = columns * out * size + rows * out * out
    return [*costs, ConvCost("spatially separable", "K M N + K N N", columns + rows, macs)]


def unit_formula(layers: Sequence[LayerCount]) -> str:
    """The weights of a unit with its numbers filled in: ``3*3*64 + 64*128 = 8,768``."""
    weights = sum(layer.macs // math.prod(layer.out_shape[1:]) for layer in layers)
    return " + ".join(_factors(layer) for layer in layers) + f" = {weights:,}"


def _factors(layer: LayerCount) -> str:
    window = layer.kernel_size if layer.kernel_size != (1, 1) else ()
    inputs = layer.in_shape[0] // layer.groups  # of one filter
    return "*".join(map(str, (*window, *((inputs,) if inputs > 1 else ()), layer.out_shape[0])))


def swapped_units(counted: Count) -> dict[str, list[LayerCount]]:
    """The layers of every operator that ``conv=`` put in, without its gate."""
    layers: dict[str, list[LayerCount]] = {}
    for layer in counted.layers:
        unit, inside, rest = layer.name.rpartition(".conv.")
        if inside and not rest.startswith("gate."):
            layers.setdefault(f"{unit}.conv", []).append(layer)
    return layers
