"""Learned rounding: each weight goes up or down so that the layer's outputs stay.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv:2004.10568:
of the two levels beside a weight the nearest is not the best, because errors of the weights of a
channel add up or cancel on real inputs. The error of a layer's outputs is a quadratic form of the
weights' errors (section 3.2), whose matrix is summed over the calibration pictures once. The paper
relaxes the choice to gradient descent on sampled inputs; here single weights are turned over, from
the nearest levels on, as long as that makes the form smaller. So it never grows, and nothing is
drawn at random.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep_zoo.nn.int8 import LARGEST, Layer, Scheme, layers_of, step_of
from dwsep_zoo.nn.layers import Conv2dSame

SWEEPS = 20
"""Over all weights of a layer; most layers need fewer."""
BLOCK = 128
"""Columns of weights between two updates of the whole gradient."""
DAMPING = 0.01
"""Of the mean square of the inputs, as if there were noise: few pictures show few inputs."""


def learned_copy(model: nn.Module, images: Tensor, scheme: Scheme) -> nn.Module:
    """A copy whose weights are the levels of int8, chosen layer after layer.

    Each layer sees what the rounded layers before it make. The first layer keeps its weights:
    runtimes may give it fewer levels.

    Args:
        model: with folded norms.
        images: (N, C, H, W), computed at once.
        scheme: of rounding.
    """
    copied = copy.deepcopy(model)
    _, *layers = layers_of(copied).values()

    def learn(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(layer, Layer)
        layer.weight.copy_(learned(layer.weight, products(layer, inputs[0]), scheme))

    handles = [layer.register_forward_pre_hook(learn) for layer in layers]
    try:
        with torch.no_grad():
            copied(images)
    finally:
        for handle in handles:
            handle.remove()
    return copied


def products(layer: Layer, x: Tensor) -> Tensor:
    """The mean products of the inputs that a layer's weights meet.

    Args:
        layer: a convolution or linear layer with K weights for each output channel.
        x: its input, (N, C, H, W) or (N, C).

    Returns:
        (groups, K, K).
    """
    if isinstance(layer, nn.Linear):
        return (x.T @ x / len(x))[None]
    if isinstance(layer, Conv2dSame):
        x = layer.pad(x)
    taps = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    size = layer.weight[0].numel()
    found = x.new_zeros(layer.groups, size, size)
    for image in x.split(1):
        columns = F.unfold(image, *taps).view(layer.groups, size, -1)  # type: ignore[arg-type]
        found += columns @ columns.mT / columns.shape[2]
    return found / len(x)


def learned(weight: Tensor, form: Tensor, scheme: Scheme) -> Tensor:
    """Weights on the levels of int8, with a small error of the outputs.

    Args:
        weight: (M, ...), of M output channels.
        form: (groups, K, K), see :func:`products`.
        scheme: of rounding.
    """
    groups, size, _ = form.shape
    step = step_of(weight, scheme).expand(len(weight), *[1] * (weight.ndim - 1))
    step = step.reshape(groups, -1, 1)
    exact = weight.reshape(groups, -1, size) / step
    noise = DAMPING * form.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(form.dtype).tiny)
    form = form + noise.view(-1, 1, 1) * torch.eye(size)
    levels = _turned(exact, exact.round(), step, form)
    return (levels * step).view_as(weight)


def _turned(exact: Tensor, levels: Tensor, step: Tensor, form: Tensor) -> Tensor:
    """Turn weights over, from one level beside them to the other, while the error shrinks."""
    below = exact.floor()
    # The largest weight stays: the runtimes' steps follow from it.
    free = (exact - exact.round()).abs() > 1e-3
    free &= (below >= -LARGEST) & (below < LARGEST)
    slope = ((levels - exact) * step) @ form
    for _ in range(SWEEPS):
        before = levels.clone()
        for first in range(0, levels.shape[2], BLOCK):
            part = slice(first, first + BLOCK)
            inner, old = form[:, part, part], levels[:, :, part].clone()
            for k in range(old.shape[2]):
                at = first + k
                change = (2 * below[:, :, at] + 1 - 2 * levels[:, :, at]) * step[:, :, 0]
                gain = change * (2 * slope[:, :, at] + change * inner[:, k, k, None])
                change = torch.where(free[:, :, at] & (gain < 0), change, 0.0)
                levels[:, :, at] += change / step[:, :, 0]
                slope[:, :, part] += change[:, :, None] * inner[:, k, None]
            moved = (levels[:, :, part] - old) * step
            rows = moved @ form[:, part]
            rows[:, :, part] = 0.0  # is up to date
            slope += rows
        if torch.equal(levels, before):
            break
    return levels
