"""The channels of layers that have weights, and the pairs of layers that can be rescaled."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from dwsep_zoo.acceleration.trace import Untraceable, trace
from dwsep_zoo.errors import UserError
from dwsep_zoo.nn.int8 import Layer, layers_of
from dwsep_zoo.nn.layers import is_depthwise, is_pointwise

DEAD = 1e-4  # a range below this part of the median one
PASSES = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.Dropout),
    *(nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten),
)
"""Modules with f(s x) = s f(x) for each channel and s > 0, ReLU6 once it is a ReLU."""


def kind_of(layer: Layer) -> str:
    if isinstance(layer, nn.Linear):
        return "linear"
    if is_depthwise(layer):
        return "depthwise"
    return "pointwise" if is_pointwise(layer) else "dense"


def output_ranges(layer: Layer) -> Tensor:
    """The largest absolute weight of each output channel."""
    return layer.weight.detach().abs().flatten(1).amax(1)


def input_ranges(layer: Layer) -> Tensor:
    """The largest absolute weight that meets each input channel."""
    return _by_input(layer, layer.weight.detach()).abs().amax((1, 3)).flatten()


def alive(ranges: Tensor) -> Tensor:
    """Which channels have weights that count; a trained network can have dead channels."""
    return ranges > DEAD * ranges.median()


def _by_input(layer: Layer, weight: Tensor) -> Tensor:
    """A view (groups, outputs of a group, inputs of a group, kernel) of a layer's weights."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)


def scale_outputs(layer: Layer, factors: Tensor) -> None:
    """Multiply each output channel."""
    with torch.no_grad():
        layer.weight *= factors.view(-1, *[1] * (layer.weight.ndim - 1))
        if layer.bias is not None:
            layer.bias *= factors


def scale_inputs(layer: Layer, factors: Tensor) -> None:
    """Multiply the weights that meet each input channel."""
    with torch.no_grad():
        view = _by_input(layer, layer.weight)
        view *= factors.view(view.shape[0], 1, view.shape[2], 1)


def response(layer: Layer, channels: Tensor) -> Tensor:
    """What a layer without padding makes of input channels that are constants; without its bias."""
    view = _by_input(layer, layer.weight.detach())
    return (view * channels.view(view.shape[0], 1, view.shape[2], 1)).sum((2, 3)).flatten()


def add_bias(layer: Layer, change: Tensor) -> None:
    bias = change if layer.bias is None else layer.bias.detach() + change
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)


@dataclass(frozen=True)
class Pair:
    """Two layers of which the second takes the channels of the first, and nobody else does.

    Attributes:
        first: name of a layer.
        between: names of the modules between them, all of ``PASSES``.
        second: name of a layer.
    """

    first: str
    between: tuple[str, ...]
    second: str


def find_pairs(model: nn.Module) -> list[Pair]:
    """The pairs of a network whose norms are folded, in the order of execution.

    A shortcut, a gate or an activation that is not homogeneous lies between the layers of no pair.
    """
    try:
        graph = trace(model).recorded.graph
    except Untraceable as error:
        raise UserError(f"this network cannot be quantised: {error}") from error
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    layers = layers_of(model)
    pairs = []
    for node in graph.nodes:
        first, between = _name(node), list[str]()
        if first not in layers or calls[node.target] > 1:
            continue
        while node is not None and (node := _only_user(node)) is not None:
            name = _name(node)
            if name in layers:
                if calls[node.target] == 1 and _fit(layers[first], layers[name]):
                    pairs.append(Pair(first, tuple(between), name))
                break
            if name is None or not isinstance(model.get_submodule(name), PASSES):
                break
            between.append(name)
    return pairs


def _name(node: fx.Node) -> str | None:
    """The name of the module that a node calls with one tensor."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    return str(node.target).removeprefix("network.")


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _fit(first: Layer, second: Layer) -> bool:
    """Whether the inputs of the second are the channels of the first, and no pixels."""
    return len(output_ranges(first)) == len(input_ranges(second))
