"""The depthwise convolution, without the two slow paths of PyTorch's CPU backward.

PyTorch hands CPU convolutions to oneDNN, whose choice of kernel fails twice for depthwise ones:

* input gradient, bfloat16, stride > 1: a matrix-multiply kernel meant for dense convolutions takes
  the job and pads every channel to a 16 x 2 block. In float32 the same gradient is many times
  faster.
* weight gradient, kernel wider than 3: there is no depthwise kernel, in float32 or bfloat16. The
  kernel's columns are independent, so the gradient is computed in groups of at most 3 columns.

The forward pass is fast in all cases and stays ``torch.nn.functional.conv2d``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_MAX_FAST_WIDTH = 3


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Convolve every channel with its own k x k filters.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(C * depth_multiplier, 1, k, k)``.
        stride: the same in both directions.
        padding: zeros on each side, in pixels.

    Returns:
        ``(N, C * depth_multiplier, H', W')``; equal to ``conv2d(..., groups=C)``, and so are its
        gradients, up to rounding.
    """
    channels = x.shape[1]
    if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.jit.is_tracing():
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        if slow_input_grad(x.dtype, stride) or slow_weight_grad(weight.shape[-1]):
            return _DepthwiseConv2d.apply(x, weight, stride, padding)
    return F.conv2d(x, weight, None, stride, padding, 1, channels)


def slow_input_grad(dtype: torch.dtype, stride: int) -> bool:
    """Whether oneDNN's own input gradient is the slow one."""
    return dtype is torch.bfloat16 and stride > 1


def slow_weight_grad(kernel_width: int) -> bool:
    """Whether oneDNN's own weight gradient is the slow one."""
    return kernel_width > _MAX_FAST_WIDTH


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_grad(grad, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_grad(grad, x, weight, ctx.stride, ctx.padding)
        return grad_x, grad_weight, None, None


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: tuple[int, int],
    mask: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        [stride] * 2,
        padding,
        [1, 1],
        False,
        [0, 0],
        x.shape[1],
        [*mask, False],
    )
    return grad_x, grad_weight


def _input_grad(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    both = (padding, padding)
    if not slow_input_grad(x.dtype, stride):
        return _backward(grad, x, weight, stride, both, (True, False))[0]
    # The values of the input are not used, its shape and layout are.
    like_x = torch.empty_like(x, dtype=torch.float32)
    return _backward(grad.float(), like_x, weight.float(), stride, both, (True, False))[0].to(
        x.dtype
    )


def _weight_grad(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    width = weight.shape[-1]
    if not slow_weight_grad(width):
        return _backward(grad, x, weight, stride, (padding, padding), (False, True))[1]
    x = F.pad(x, (padding, padding))  # columns only; the rows are padded by the convolution
    span = (grad.shape[-1] - 1) * stride  # from the first to the last window position
    parts = []
    for first in range(0, width, _MAX_FAST_WIDTH):
        columns = weight[..., first : first + _MAX_FAST_WIDTH]
        window = x[..., first : first + span + columns.shape[-1]]
        parts.append(_backward(grad, window, columns, stride, (padding, 0), (False, True))[1])
    return torch.cat(parts, dim=-1)
