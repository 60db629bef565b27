"""Equal ranges for the channels of a network, without a change of what it computes.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
arXiv:1906.04721. One scale for all channels of a layer rounds those with small weights to nothing.
A channel can be divided by s in one layer and multiplied by s in the next one, if what lies between
is positively homogeneous.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the base of all batch norms

from dwsep_zoo.nn.fuse import fold_norms, norm_pairs
from dwsep_zoo.nn.int8 import Layer, layers_of
from dwsep_zoo.quantise.bias import channel_maxima, observe
from dwsep_zoo.quantise.layers import (
    Pair,
    add_bias,
    alive,
    find_pairs,
    input_ranges,
    output_ranges,
    response,
    scale_inputs,
    scale_outputs,
)

MOST_PASSES = 100
SETTLED = 1e-4  # largest |log s| of a pass that ends them
CEILING, HEADROOM = 6.0, 1.5  # of a ReLU6; other pictures may go higher than those at hand
SIGMAS = 3.0  # a channel's mean less this many deviations, or less, is its minimum

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Mean and deviation of the outputs of each layer that a norm follows, by name."""


def fold(model: nn.Module, input_size: Sequence[int]) -> Statistics:
    """Fold the norms of a network; returns what they say about the outputs of their layers."""
    names = {id(module): name for name, module in model.named_modules()}
    found: Statistics = {}
    for name, layer in norm_pairs(model, input_size).items():
        norm = model.get_submodule(name)
        assert isinstance(norm, _BatchNorm)
        found[names[id(layer)]] = (norm.bias.detach().clone(), norm.weight.detach().abs())
    fold_norms(model, input_size)
    return found


class Ceiling(nn.Module):
    """A ReLU that stops at a limit of its own in each channel: a rescaled ReLU6."""

    limit: Tensor

    def __init__(self, limit: Tensor):
        super().__init__()
        self.register_buffer("limit", limit.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(x.relu(), self.limit)


def equalise(
    model: nn.Module,
    images: Tensor,
    statistics: Statistics | None = None,
    *,
    ceilings: bool = False,
) -> list[Pair]:
    """Equalise the channels of all pairs of layers, then absorb high biases.

    The paper puts a ReLU in the place of a ReLU6, which costs a network whose channels do reach
    six a third of its accuracy. Here a ReLU6 stays, and only those channels are rescaled that stay
    well below six on ``images``, before and after; or it gets a ceiling for each channel.

    Args:
        model: with folded norms; changed in place.
        images: (N, C, H, W), to find how low and how high channels go.
        statistics: of :func:`fold`; high biases are absorbed where they are known.
        ceilings: replace ReLU6 by :class:`Ceiling`, so that every channel can be rescaled. It is
            exact, and an operation more for the runtime.

    Returns:
        The pairs.
    """
    pairs = find_pairs(model)
    lowest, highest = _extremes(model, pairs, images)
    least = {
        pair.first: _least_scales(highest[pair.first], capped=_capped(model, pair) and not ceilings)
        for pair in pairs
    }
    dtype = next(model.parameters()).dtype
    model.double()  # many passes, rounded once
    scales = _equal_ranges(model, pairs, least)
    for pair in pairs:
        scale = scales[pair.first]
        always = torch.zeros_like(scale)
        if statistics and pair.first in statistics and _absorbs(model, pair):
            mean, deviation = (t.double() for t in statistics[pair.first])
            known = (mean - SIGMAS * deviation).minimum(lowest[pair.first]).clamp_min(0) / scale
            always = known.where(least[pair.first] < math.inf, 0.0)
            add_bias(layers_of(model)[pair.first], -always)
            second = layers_of(model)[pair.second]
            add_bias(second, response(second, always))
        for name in pair.between if ceilings else ():
            if isinstance(model.get_submodule(name), nn.ReLU6):
                parent, _, own = name.rpartition(".")
                setattr(model.get_submodule(parent), own, Ceiling(CEILING / scale - always))
    model.to(dtype)
    return pairs


def _extremes(
    model: nn.Module, pairs: Sequence[Pair], images: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The lowest and the highest value of each output channel of the first layers."""
    lowest: dict[str, Tensor] = {}
    highest: dict[str, Tensor] = {}
    wanted = {pair.first for pair in pairs}

    def look(name: str, layer: Layer, y: Tensor) -> None:
        if name in wanted:
            lowest[name], highest[name] = -channel_maxima(-y).double(), channel_maxima(y).double()

    observe(model, images, look)
    return lowest, highest


def _capped(model: nn.Module, pair: Pair) -> bool:
    return any(isinstance(model.get_submodule(name), nn.ReLU6) for name in pair.between)


def _least_scales(highest: Tensor, *, capped: bool) -> Tensor:
    """The least divisor of each channel; infinite: it must be 1."""
    share = highest.clamp_min(0) * HEADROOM / CEILING
    return share.where(share <= 1, math.inf) if capped else torch.zeros_like(share)


def _equal_ranges(
    model: nn.Module, pairs: Sequence[Pair], least: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Section 4.1, equation 11; returns what the outputs of each first layer were divided by."""
    layers = layers_of(model)
    total = {name: torch.ones_like(one) for name, one in least.items()}
    for _ in range(MOST_PASSES):
        largest = 0.0
        for pair in pairs:
            first, second, fixed = layers[pair.first], layers[pair.second], least[pair.first]
            r1, r2 = output_ranges(first), input_ranges(second)
            scale = (r1 / r2).sqrt().maximum(fixed / total[pair.first])
            scale = scale.where(alive(r1) & alive(r2) & (fixed < math.inf), 1.0)
            scale_outputs(first, 1 / scale)
            scale_inputs(second, scale)
            total[pair.first] *= scale
            largest = max(largest, float(scale.log().abs().max()))
        if largest < SETTLED:
            break
    return total


def _absorbs(model: nn.Module, pair: Pair) -> bool:
    """Whether a part that always passes a ReLU can move into the bias of the second layer.

    Section 4.1.3. It cannot where that layer pads its input with zeros.
    """
    second = layers_of(model)[pair.second]
    relu = any(isinstance(model.get_submodule(n), nn.ReLU | nn.ReLU6) for n in pair.between)
    return relu and (isinstance(second, nn.Linear) or second.kernel_size == (1, 1))
