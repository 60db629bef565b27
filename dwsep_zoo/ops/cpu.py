"""Gradients of the depthwise convolution on the CPU that avoid PyTorch's slow cases.

In channels_last, the layout of training, one sweep of our own computes both gradients
(:mod:`dwsep_zoo.ops.native`). This module covers all other cases, and machines without a compiler.
PyTorch delegates CPU convolutions to oneDNN, which selects a slow kernel in these
cases:

* input gradient, bfloat16, stride > 1: oneDNN uses a matrix-multiply kernel for dense convolutions
  that pads every channel to a 16 x 2 block. With zeros between its elements, the incoming gradient
  becomes that of a convolution of stride 1, for which the right kernel exists: four times the
  arithmetic, and still many times faster. (In float32 the right kernel supports strides, but
  casting to float32 and back takes twice as long.)
* weight gradient: the depthwise kernel supports no kernels wider than 3, none higher than the image
  (with a stride: than the image less a row), none 7 high with a stride, and no single columns with
  a stride. The substitute is 4 to 80 times slower, in float32 or bfloat16. The gradient of each
  tap is independent of the others, so we compute it in tiles of taps that the fast
  kernel supports, on explicitly padded images. The images are processed a few at a time, because
  each tile reads them once. (If so many tiles are slower still, PyTorch computes, and it counts.)

The forward pass is always fast. ``dwsep doctor`` times these detours against PyTorch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep_zoo.ops import native
from dwsep_zoo.ops.fallback import fallbacks

MAX_FAST = 3  # taps in a row, and in a column if the whole column is slow
CACHED_BYTES = 2**21  # of the images that every tile reads


def slow_input_grad(dtype: torch.dtype, stride: int) -> bool:
    """Whether oneDNN selects the slow kernel for the input gradient."""
    return dtype is torch.bfloat16 and stride > 1


def slow_weight_grad(dtype: torch.dtype, height: int, kernel_size: int, stride: int) -> bool:
    """Whether oneDNN selects the slow weight gradient for images with ``height`` rows."""
    too_low = height < kernel_size + (stride > 1)
    return kernel_size > MAX_FAST or (kernel_size > 1 and too_low)


def tiles_are_slower(dtype: torch.dtype, kernel_size: int, stride: int) -> bool:
    """Whether the tiles are slower still: nine or more of them, with a stride."""
    return kernel_size > 5 and stride > 1 and dtype is not torch.bfloat16


def has_faster_gradients(
    x: Tensor, dtype: torch.dtype, weight: Tensor, stride: int, padding: int
) -> bool:
    """Whether :func:`backward` beats PyTorch for this input after a cast to ``dtype``.

    Where nothing beats PyTorch although it is slow, this is counted.
    """
    if slow_input_grad(dtype, stride):
        return True
    if dtype is not torch.float64 and native.covers_depthwise(x, weight, stride, padding):
        return True
    size = weight.shape[-1]
    if x.numel() == 0 or not slow_weight_grad(dtype, x.shape[2], size, stride):
        return False
    if tiles_are_slower(dtype, size, stride):
        case = f"{size} x {size}, stride {stride}, {dtype}"
        fallbacks[f"weight gradient on the CPU: {case}"] += 1
        return False
    return True


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of input and weight, ``None`` where ``mask`` is false."""
    need_x, need_weight = mask
    if need_weight and native.covers_depthwise(x, weight, stride, padding):
        return native.depthwise_backward(grad, x, weight, stride, padding, need_x)
    narrow = weight.to(x.dtype)
    return (
        input_grad(grad, x, narrow, stride, padding) if need_x else None,
        weight_grad(grad, x, narrow, stride, padding) if need_weight else None,
    )


def aten_forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Convolve with PyTorch, in the type of ``x``."""
    return F.conv2d(x, weight.to(x.dtype), None, stride, padding, 1, x.shape[1])


def aten_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: tuple[int, int],
    mask: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Return PyTorch's gradients of input and weight, each if ``mask`` is true."""
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
    """Return ``(N, C, H, W)``; only shape, type and layout of ``x`` are used."""
    both = (padding, padding)
    if not slow_input_grad(x.dtype, stride):
        return aten_backward(grad, x, weight, stride, both, (True, False))[0]
    size = [side + 2 * padding - weight.shape[-1] + 1 for side in x.shape[2:]]
    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    spread = torch.empty(*grad.shape[:2], *size, dtype=grad.dtype, memory_format=layout).zero_()
    spread[..., ::stride, ::stride] = grad
    return aten_backward(spread, x, weight, 1, both, (True, False))[0]


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return ``(C * depth_multiplier, 1, k, k)``."""
    size = weight.shape[-1]
    if x.numel() == 0 or not slow_weight_grad(x.dtype, x.shape[2], size, stride):
        return aten_backward(grad, x, weight, stride, (padding, padding), (False, True))[1]
    few = max(1, CACHED_BYTES // x[:1].nbytes)
    parts = zip(grad.split(few), x.split(few), strict=True)
    total = weight.new_zeros(weight.shape, dtype=torch.promote_types(x.dtype, torch.float32))
    for some_grad, some_x in parts:
        total += _tiled_weight_grad(some_grad, some_x, weight, stride, padding)
    return total.to(weight.dtype)


def _tiled_weight_grad(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int
) -> Tensor:
    size = weight.shape[-1]
    x = F.pad(x, (padding,) * 4)
    # Distance from the first to the last position of a tap.
    down, right = ((n - 1) * stride for n in grad.shape[2:])
    whole_columns = stride == 1 or size <= 5
    result = torch.empty_like(weight)
    for top, rows in [(0, size)] if whole_columns else _tiles(size):
        for left, columns in _tiles(size):
            taps = weight[..., top : top + rows, left : left + columns]
            window = x[..., top : top + down + rows, left : left + right + columns]
            part = aten_backward(grad, window, taps, stride, (0, 0), (False, True))[1]
            result[..., top : top + rows, left : left + columns] = part
    return result


def _tiles(size: int) -> list[tuple[int, int]]:
    """Return first tap and number of taps of each tile; the last tile overlaps."""
    starts = [*range(0, size - MAX_FAST, MAX_FAST), max(size - MAX_FAST, 0)]
    return [(start, min(MAX_FAST, size)) for start in starts]
