"""Which layers lose what when their weights are rounded to int8."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep_zoo.nn.int8 import SCHEMES, Layer, rounded
from dwsep_zoo.nn.layers import Conv2dSame
from dwsep_zoo.quantise.bias import observe
from dwsep_zoo.quantise.layers import alive, kind_of, output_ranges

MOST_DB = 120.0  # of a channel without any error


@dataclass(frozen=True)
class LayerLoss:
    """A layer and what rounding its weights alone does to its outputs.

    Attributes:
        name: of the layer.
        kind: depthwise, pointwise, dense or linear.
        channels: of its output that are alive: the others have no weights to speak of.
        spread: largest range of a channel's weights over the smallest one of these channels.
        decibels: by scheme, signal over rounding noise, 20 log10 of a ratio of amplitudes: the mean
            over channels, each without its bias. Below 0 the noise is the larger one. The mean over
            channels, because the next layer may weigh a small channel as much as a large one.
    """

    name: str
    kind: str
    channels: int
    spread: float
    decibels: dict[str, float]


def diagnose(model: nn.Module, images: Tensor) -> list[LayerLoss]:
    """Examine each layer of a network with folded norms by itself, on real inputs."""
    found: list[LayerLoss] = []
    inputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda m, x: inputs.__setitem__("x", x[0]))
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]

    def look(name: str, layer: Layer, y: Tensor) -> None:
        signal = y if layer.bias is None else y - layer.bias.view(-1, *[1] * (y.ndim - 2))
        ranges = output_ranges(layer)
        used = alive(ranges)
        if not used.any():
            return
        decibels: dict[str, float] = {}
        for scheme in SCHEMES:
            got = _apply(layer, inputs["x"], rounded(layer.weight, scheme))
            decibels[scheme] = _decibels(signal[:, used], got[:, used])
        spread = float(ranges.max() / ranges[used].min())
        found.append(LayerLoss(name, kind_of(layer), int(used.sum()), spread, decibels))

    try:
        observe(model, images, look)
    finally:
        for handle in handles:
            handle.remove()
    return found


def culprit(losses: list[LayerLoss], scheme: str = "per_tensor") -> LayerLoss:
    """The layer with the least signal over noise."""
    return min(losses, key=lambda loss: loss.decibels[scheme])


def _apply(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """The layer with other weights and without its bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    if isinstance(layer, Conv2dSame):
        x = layer.pad(x)
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _decibels(signal: Tensor, got: Tensor) -> float:
    dims = [dim for dim in range(signal.ndim) if dim != 1]
    power, noise = (t.double().square().mean(dims) for t in (signal, got - signal))
    ratio = power.clamp_min(torch.finfo(torch.double).tiny) / noise.clamp_min(1e-300)
    return float((10 * ratio.log10()).clamp_max(MOST_DB).mean())
