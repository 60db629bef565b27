"""Parameters and multiply-adds, by closed form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dwsep_zoo.errors import UserError


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
    macs_inside: int  # without those of taps that lie on padding


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


def image_shape(model: nn.Module, input_size: Sequence[int] | None = None) -> tuple[int, int, int]:
    """Return the ``(C, H, W)`` of a network's images.

    Args:
        model: of this zoo, of timm's, or any other that takes ``(N, C, H, W)``.
        input_size: the shape that the user wants; ``None``: the network's own.

    Raises:
        UserError: for a shape that is none, or of other channels than the network's; and for
            ``None`` where a network does not say which images it takes.
    """
    described = getattr(model, "default_cfg", None) or {}
    own = described.get("input_size")
    if input_size is None:
        if own is None:
            raise UserError(f"{type(model).__name__} does not say its input_size; give (C, H, W)")
        input_size = own
    is_shape = isinstance(input_size, Sequence) and not isinstance(input_size, str)
    if not (
        is_shape
        and len(input_size) == 3
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in input_size)
    ):
        shown = list(input_size) if is_shape else input_size
        raise UserError(f"input_size must be (C, H, W), three whole numbers; got {shown!r}")
    if own is not None and own[0] != input_size[0]:
        raise UserError(
            f"the network takes images of {own[0]} channels; got input_size={tuple(input_size)}"
        )
    channels, height, width = input_size
    return channels, height, width


def common_shape(
    models: Iterable[nn.Module], input_size: Sequence[int] | None = None
) -> tuple[int, int, int]:
    """Return the ``(C, H, W)`` of images that all of the networks take.

    Raises:
        UserError: see :func:`image_shape`, and where the networks' own differ.
    """
    shapes = {image_shape(model, input_size) for model in models}
    if len(shapes) > 1:
        raise UserError(f"the networks' own sizes differ, {sorted(shapes)}; give an input_size")
    return shapes.pop()


def count(model: nn.Module, input_size: Sequence[int] | None = None) -> Count:
    """Count a network's parameters and multiply-adds for one image.

    The network runs on a batch of no images, with weights that take no memory. This gives every
    shape without arithmetic, whatever the size and on the meta device too. (A batch on the meta
    device would load PyTorch's compiler first: seconds instead of milliseconds.)

    Args:
        model: the network.
        input_size: ``(C, H, W)``; ``None``: the network's own.

    Raises:
        UserError: see :func:`image_shape`.
    """
    layers: list[LayerCount] = []
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weightless = {
        name: torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)
        for name, tensor in tensors.items()
    }
    channels, height, width = image_shape(model, input_size)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                hook = module.register_forward_hook(
                    lambda *call, name=name: layers.append(_layer(name, *call))
                )
                stack.enter_context(hook)
        for context in (in_mode(model, training=False), torch.no_grad(), _ShapesOnly()):
            stack.enter_context(context)
        dtype = next(model.parameters()).dtype
        no_images = torch.empty(0, channels, height, width, device="cpu", dtype=dtype)
        torch.func.functional_call(model, weightless, (no_images,))
    return Count(
        params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        macs=sum(layer.macs for layer in layers),
        input_size=(channels, height, width),
        layers=tuple(layers),
    )


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Train or eval mode for a while; afterwards each module has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


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


def _layer(
    name: str, module: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor
) -> LayerCount:
    window: dict[str, Any] = {"kernel_size": (1, 1), "stride": (1, 1), "groups": 1}
    if isinstance(module, nn.Conv2d):
        window = {key: getattr(module, key) for key in window}
    return LayerCount(
        name=name,
        kind=conv_kind(module),
        in_shape=tuple(inputs[0].shape[1:]),
        out_shape=tuple(output.shape[1:]),
        params=sum(p.numel() for p in module.parameters()),
        # every weight is used once for each output pixel
        macs=module.weight.numel() * math.prod(output.shape[2:]),
        macs_inside=_macs_inside(module, inputs[0].shape[2:], output.shape[2:]),
        **window,
    )


def _macs_inside(
    module: nn.Conv2d | nn.Linear, in_size: Sequence[int], out_size: Sequence[int]
) -> int:
    """The multiply-adds whose factors are both numbers of the image and of the filter."""
    if isinstance(module, nn.Linear):
        return module.weight.numel()
    macs = math.prod(module.weight.shape[:2])
    for i, (size, outputs) in enumerate(zip(in_size, out_size, strict=True)):
        step, stride = module.dilation[i], module.stride[i]
        extent = step * (module.kernel_size[i] - 1) + 1
        missing = max((outputs - 1) * stride + extent - size, 0)  # at both ends together
        padding = module.padding[i] if isinstance(module.padding, tuple) else 0
        first = -(padding or missing // 2)
        macs *= sum(
            0 <= start + tap < size
            for start in range(first, first + outputs * stride, stride)
            for tap in range(0, extent, step)
        )
    return macs


def conv_kind(module: nn.Conv2d | nn.Linear) -> str:
    """``depthwise``, ``grouped``, ``pointwise``, ``dense`` or ``linear``."""
    if isinstance(module, nn.Linear):
        return "linear"
    if module.groups == module.in_channels > 1:
        return "depthwise"
    if module.groups > 1:
        return "grouped"
    return "pointwise" if module.kernel_size == (1, 1) else "dense"
