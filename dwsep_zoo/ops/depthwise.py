"""The depthwise convolution as an operator of PyTorch: ``torch.ops.dwsep.depthwise_conv2d``.

``torch.compile`` sees one opaque call and keeps the detours around slow kernels inside it. For
``torch.export``, ONNX and tracing, and wherever PyTorch's kernel is fast, it is a plain
grouped ``conv2d``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from dwsep_zoo.ops import cpu, cuda
from dwsep_zoo.ops.dtype import autocast_dtype
from dwsep_zoo.ops.fallback import fallbacks, plain


def depthwise_conv2d(
    x: Tensor, weight: Tensor, stride: int, padding: int, bias: Tensor | None = None
) -> Tensor:
    """Convolve each channel with its own k x k filters.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(C * depth_multiplier, 1, k, k)``.
        stride: the same in both directions.
        padding: zeros on each side, in pixels.
        bias: ``(C * depth_multiplier,)``.

    Returns:
        ``(N, C * depth_multiplier, H', W')``. Output and gradients equal those of
        ``conv2d(..., groups=C)`` up to rounding.
    """
    if _is_worth_an_operator(x, weight, stride, padding):
        # Keep the weight's type, so that its gradient is not rounded.
        y = _depthwise_conv2d(x.to(autocast_dtype(x)), weight, stride, padding)
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]
    return F.conv2d(x, weight, bias, stride, padding, 1, x.shape[1])


def _is_worth_an_operator(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    if plain(x):
        return False
    device = x.device.type
    if device == "cuda":
        return True
    if device != "cpu":
        if device != "meta" and not torch.compiler.is_compiling():
            fallbacks[f"device {device}"] += 1
        return False
    if not torch.is_grad_enabled():
        return False
    if not (x.requires_grad or weight.requires_grad):
        return False
    return cpu.has_faster_gradients(x, autocast_dtype(x), weight, stride, padding)


@torch.library.custom_op("dwsep::depthwise_conv2d", mutates_args=())
def _depthwise_conv2d(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    if x.is_cuda:
        return cuda.forward(x, weight, stride, padding)
    return cpu.aten_forward(x, weight, stride, padding)


@_depthwise_conv2d.register_fake
def _(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    return cpu.aten_forward(x, weight, stride, padding)


@torch.library.custom_op("dwsep::depthwise_conv2d_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of input and weight; empty tensors where ``mask`` is false."""
    need_x, need_weight = mask
    grad_x: Tensor | None
    grad_weight: Tensor | None
    if x.is_cuda:
        grad_x, grad_weight = cuda.backward(grad, x, weight, stride, padding, (need_x, need_weight))
    else:
        grad_x, grad_weight = cpu.backward(grad, x, weight, stride, padding, (need_x, need_weight))
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        x.new_empty(0) if grad_weight is None else grad_weight.to(weight.dtype),
    )


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    need_x, need_weight = mask
    return (
        torch.empty_like(x) if need_x else x.new_empty(0),
        torch.empty_like(weight) if need_weight else x.new_empty(0),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    x, weight = ctx.saved_tensors
    need_x, need_weight = ctx.needs_input_grad[:2]
    grad_x, grad_weight = _backward(grad, x, weight, ctx.stride, ctx.padding, [need_x, need_weight])
    return grad_x if need_x else None, grad_weight if need_weight else None, None, None


_depthwise_conv2d.register_autograd(_differentiate, setup_context=_keep)


def _keep_for_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, x, weight, ctx.stride, ctx.padding, ctx.mask = inputs
    ctx.save_for_backward(grad, x, weight)


def _differentiate_again(
    ctx: Any, along_x: Tensor, along_weight: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None, None, None, None]:
    """Compute second derivatives, which are again convolutions and their gradients.

    y = conv(x, w) is linear in x and in w. The inner products of its gradients with the incoming
    tensors are <conv(along_x, w), grad> and <conv(x, along_weight), grad>.
    """
    grad, x, weight = ctx.saved_tensors
    of_x, of_weight = ctx.mask
    shape = (ctx.stride, ctx.padding)
    by_grad: list[Tensor] = []
    by_x: Tensor | None = None
    by_weight: Tensor | None = None
    if of_x:
        by_grad.append(_depthwise_conv2d(along_x, weight, *shape))
        _, by_weight = _backward(grad, along_x, weight, *shape, [False, True])
    if of_weight:
        by_grad.append(_depthwise_conv2d(x, along_weight, *shape))
        by_x, _ = _backward(grad, x, along_weight, *shape, [True, False])
    return sum(by_grad[1:], by_grad[0]), by_x, by_weight, None, None, None


_backward.register_autograd(_differentiate_again, setup_context=_keep_for_second)


@register_flop_formula(torch.ops.dwsep.depthwise_conv2d)
def _flops(
    x_shape: list[int], weight_shape: list[int], *args: Any, out_shape: list[int], **kwargs: Any
) -> int:
    return conv_flop_count(x_shape, weight_shape, out_shape)


@register_flop_formula(torch.ops.dwsep.depthwise_conv2d_backward)
def _backward_flops(
    grad_shape: list[int],
    x_shape: list[int],
    weight_shape: list[int],
    stride: int,
    padding: int,
    mask: Sequence[bool],
    **kwargs: Any,
) -> int:
    return sum(mask) * conv_flop_count(x_shape, weight_shape, grad_shape)
