"""Gradients of the depthwise convolution on the CPU, around two slow paths of PyTorch.

PyTorch hands CPU convolutions to oneDNN, whose choice of kernel fails twice for depthwise ones:

* input gradient, bfloat16, stride > 1: a matrix-multiply kernel meant for dense convolutions takes
  the job and pads every channel to a 16 x 2 block. In float32 the same gradient is many times
  faster.
* weight gradient, kernel wider than 3: there is no depthwise kernel, in float32 or bfloat16. The
  kernel's columns are independent, so the gradient is computed in groups of at most 3 columns.

The forward pass is fast in all cases. ``dwsep doctor`` times both detours against PyTorch's way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_FAST_WIDTH = 3


def slow_input_grad(dtype: torch.dtype, stride: int) -> bool:
    """Whether oneDNN's own input gradient is the slow one."""
    return dtype is torch.bfloat16 and stride > 1


def slow_weight_grad(kernel_width: int) -> bool:
    """Whether oneDNN's own weight gradient is the slow one."""
    return kernel_width > MAX_FAST_WIDTH


def aten_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: tuple[int, int],
    mask: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """PyTorch's own gradients of the input and the weight, of each if ``mask`` says so."""
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


def input_grad(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """``(N, C, H, W)``; of ``x`` only shape, type and layout are used."""
    both = (padding, padding)
    if not slow_input_grad(x.dtype, stride):
        return aten_backward(grad, x, weight, stride, both, (True, False))[0]
    like_x = torch.empty_like(x, dtype=torch.float32)
    wide = aten_backward(grad.float(), like_x, weight.float(), stride, both, (True, False))[0]
    return wide.to(x.dtype)


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """``(C * depth_multiplier, 1, k, k)``."""
    width = weight.shape[-1]
    if not slow_weight_grad(width):
        return aten_backward(grad, x, weight, stride, (padding, padding), (False, True))[1]
    x = F.pad(x, (padding, padding))  # columns only; the rows are padded by the convolution
    span = (grad.shape[-1] - 1) * stride  # from the first to the last window position
    parts = []
    for first in range(0, width, MAX_FAST_WIDTH):
        columns = weight[..., first : first + MAX_FAST_WIDTH]
        window = x[..., first : first + span + columns.shape[-1]]
        parts.append(aten_backward(grad, window, columns, stride, (padding, 0), (False, True))[1])
    return torch.cat(parts, dim=-1)
