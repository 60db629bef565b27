"""Folding the norms of a trained network into its convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the base of SyncBatchNorm too

from dwsep_zoo.nn.conv import MixedDepthwise


def fold_norms(model: nn.Module, input_size: Sequence[int]) -> list[str]:
    """Fold the batch norms into the layers before them.

    In evaluation a norm computes ``a x + b`` for each channel, with a = weight / sqrt(var + eps)
    and b = bias - a mean, which the convolution before it can include.

    Args:
        model: changed in place: its norms become identities and it stays in eval mode.
        input_size: ``(C, H, W)`` of an image.

    Returns:
        The names of the folded norms.
    """
    pairs = norm_pairs(model, input_size)
    for name, maker in pairs.items():
        norm = model.get_submodule(name)
        assert isinstance(norm, _BatchNorm)
        _fold(maker, norm)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, nn.Identity())
    return list(pairs)


def norm_pairs(model: nn.Module, input_size: Sequence[int]) -> dict[str, nn.Module]:
    """The layer before each batch norm, by the norm's name; puts the network into eval mode.

    A forward pass with an empty batch finds them, so this works for every block.
    """
    model.eval()
    makers: dict[int, tuple[nn.Module, Tensor]] = {}  # by id of their outputs, which are kept alive
    pairs: dict[str, nn.Module] = {}

    def made(module: nn.Module, inputs: Any, output: Tensor) -> None:
        makers[id(output)] = (module, output)

    def norm_hook(name: str) -> Any:
        def meets(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in makers:
                pairs[name] = makers[id(inputs[0])][0]

        return meets

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | MixedDepthwise):
            hooks.append(module.register_forward_hook(made))
        elif isinstance(module, _BatchNorm):
            hooks.append(module.register_forward_pre_hook(norm_hook(name)))
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model(torch.empty(0, *input_size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


@torch.no_grad()
def _fold(maker: nn.Module, norm: _BatchNorm) -> None:
    assert norm.running_var is not None
    assert norm.running_mean is not None
    # In float64, because a nearly dead channel has a large scale.
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - scale * norm.running_mean.double()
    layers: list[Any] = list(maker) if isinstance(maker, MixedDepthwise) else [maker]
    sizes = [len(layer.weight) for layer in layers]
    for layer, a, b in zip(layers, scale.split(sizes), shift.split(sizes), strict=True):
        weight = layer.weight
        wide = weight.double() * a.view(-1, *[1] * (weight.ndim - 1))
        weight.copy_(wide)
        if layer.bias is not None:
            b = b + a * layer.bias.double()
        layer.bias = nn.Parameter(b.to(weight.dtype), requires_grad=weight.requires_grad)
