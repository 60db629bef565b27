"""Parameters and multiply-adds, by closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class LayerCount:
    """A convolution or linear layer; shapes ``(C, H, W)`` or ``(C,)`` are without the batch."""

    name: str
    kind: str  # depthwise, pointwise, grouped, dense, linear
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    params: int
    macs: int


@dataclass(frozen=True)
class Count:
    """Parameters and multiply-adds of a network.

    Attributes:
        params: trainable numbers, including norms and biases.
        macs: multiply-adds (1 MAC = 2 FLOPs) of convolutions and linear layers, for one image.
            Norms, activations, poolings and biases are not counted, as in the papers.
        input_size: ``(C, H, W)`` of that image.
        layers: the counted layers, in the order of execution.
    """

    params: int
    macs: int
    input_size: tuple[int, int, int]
    layers: tuple[LayerCount, ...]


def count(model: nn.Module, input_size: Sequence[int] = (3, 224, 224)) -> Count:
    """Count a network's parameters and multiply-adds for one image of ``input_size`` (C, H, W).

    The network runs on a batch of no images, with weights that take no memory. This gives every
    shape without arithmetic, whatever the size and on the meta device too. (A batch on the meta
    device would load PyTorch's compiler first: seconds instead of milliseconds.)
    """
    layers: list[LayerCount] = []
    hooks = [
        module.register_forward_hook(_recorder(name, layers))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    training = {module: module.training for module in model.modules()}
    model.eval()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weightless = {
        name: torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)
        for name, tensor in tensors.items()
    }
    channels, height, width = input_size
    try:
        with torch.no_grad(), _ShapesOnly():
            dtype = next(model.parameters()).dtype
            no_images = torch.empty(0, channels, height, width, device="cpu", dtype=dtype)
            torch.func.functional_call(model, weightless, (no_images,))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return Count(
        params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        macs=sum(layer.macs for layer in layers),
        input_size=(channels, height, width),
        layers=tuple(layers),
    )


class _ShapesOnly(TorchFunctionMode):
    """Convolutions of no images give their shape at once; PyTorch would first copy the weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.conv2d or kwargs or len(args) < 7:  # not as nn.Conv2d calls it
            return func(*args, **(kwargs or {}))
        x, weight, _, stride, padding, dilation, groups = args
        if x.shape[1] != groups * weight.shape[1]:
            return func(*args)  # says so
        # One filter over one channel, which goes where all of them go.
        one = func(x[:, :1], weight[:1, :1], None, stride, padding, dilation)
        return x.new_empty(len(x), len(weight), *one.shape[2:])


def _recorder(
    name: str, layers: list[LayerCount]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        conv = module if isinstance(module, nn.Conv2d) else None
        layers.append(
            LayerCount(
                name=name,
                kind=conv_kind(module),
                in_shape=tuple(inputs[0].shape[1:]),
                out_shape=tuple(output.shape[1:]),
                kernel_size=_pair(conv.kernel_size) if conv else (1, 1),
                stride=_pair(conv.stride) if conv else (1, 1),
                groups=conv.groups if conv else 1,
                params=sum(p.numel() for p in module.parameters()),
                # every weight is used once for each output pixel
                macs=module.weight.numel() * math.prod(output.shape[2:]),
            )
        )

    return hook


def _pair(size: tuple[int, ...]) -> tuple[int, int]:
    height, width = size
    return height, width


def conv_kind(module: nn.Conv2d | nn.Linear) -> str:
    """``depthwise``, ``grouped``, ``pointwise``, ``dense`` or ``linear``."""
    if isinstance(module, nn.Linear):
        return "linear"
    if module.groups == module.in_channels > 1:
        return "depthwise"
    if module.groups > 1:
        return "grouped"
    return "pointwise" if module.kernel_size == (1, 1) else "dense"
