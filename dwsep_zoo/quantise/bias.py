"""Bias correction: the mean error that rounded weights make, measured and subtracted.

Section 4.2 of Nagel et al. 2019, arXiv:1906.04721, in its empirical form (appendix D).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dwsep_zoo.nn.int8 import Layer, Scheme, layers_of, rounded
from dwsep_zoo.quantise.layers import add_bias


def rounded_copy(model: nn.Module, scheme: Scheme) -> nn.Module:
    """A copy whose weights are as int8 has them; activations stay in float."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for layer in layers_of(copied).values():
            layer.weight.copy_(rounded(layer.weight, scheme))
    return copied


def channel_means(y: Tensor) -> Tensor:
    """The mean of each channel of (N, C, ...), over images and pixels."""
    return y.mean([dim for dim in range(y.ndim) if dim != 1])


def channel_maxima(y: Tensor) -> Tensor:
    """The largest value of each channel of (N, C, ...)."""
    return y.amax([dim for dim in range(y.ndim) if dim != 1])


def correct_biases(
    model: nn.Module, images: Tensor, scheme: Scheme, *, like: nn.Module | None = None
) -> None:
    """Change biases so that, with rounded weights, each channel keeps its mean on ``images``.

    Layer after layer: each one sees what the corrected layers before it make.

    Args:
        model: with folded norms; its biases are changed in place, its weights are not.
        images: (N, C, H, W), computed at once.
        scheme: of rounding.
        like: the network whose means are kept; ``None``: ``model`` as it is.
    """
    wanted, layers = dict[str, Tensor](), layers_of(model)
    observe(like or model, images, lambda name, _, y: wanted.update({name: channel_means(y)}))

    def correct(name: str, layer: Layer, y: Tensor) -> Tensor:
        error = channel_means(y) - wanted[name]
        add_bias(layers[name], -error)  # the corrected network's, not the rounded one's
        return y - error.view(1, -1, *[1] * (y.ndim - 2))

    observe(rounded_copy(model, scheme), images, correct)


def observe(
    model: nn.Module, images: Tensor, look: Callable[[str, Layer, Tensor], Tensor | None]
) -> Tensor:
    """Run a network; ``look(name, layer, output)`` may give another output for a layer."""
    hooks = [
        layer.register_forward_hook(lambda m, _, y, name=name: look(name, m, y))
        for name, layer in layers_of(model).items()
    ]
    try:
        with torch.inference_mode():
            outputs: Tensor = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
