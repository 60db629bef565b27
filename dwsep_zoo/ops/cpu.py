"""Gradients of the depthwise convolution on the CPU, around the slow paths of PyTorch.

In the layout of training, channels_last, both gradients come from one sweep of our own
(:mod:`dwsep_zoo.ops.native`). For everything else, and where there is no compiler, these are the
ways around what is slow. PyTorch hands CPU convolutions to oneDNN, whose choice of kernel fails in
some cases:

* input gradient, bfloat16, stride > 1: a matrix-multiply kernel meant for dense convolutions takes
  the job and pads every channel to a 16 x 2 block. With zeros between its numbers, the incoming
  gradient is that of a convolution of stride 1, for which the right kernel exists: four times the
  arithmetic, and still many times faster. (In float32 the right one has strides, too, but casting
  there and back takes twice as long.)
* weight gradient: the depthwise kernel takes no kernels wider than 3, none higher than the image
  (with a stride: than the image less a row), none 7 high with a stride, and no single columns with
  a stride. What takes the job instead is 4 to 80 times slower, in float32 or bfloat16. But every
  tap's gradient is independent of the others': they are computed in tiles of taps that the fast
  kernel takes, on images whose zeros are in memory, and few images at a time, as they are read
  once for every tile. (Where so many tiles are slower still, PyTorch's way is taken, and counted.)

The forward pass is fast in all cases. ``dwsep doctor`` times the detours against PyTorch's way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep_zoo.ops import native
from dwsep_zoo.ops.fallback import fallbacks

MAX_FAST = 3  # taps in a row; and in a column, where the whole column is not fast
CACHED_BYTES = 2**21  # of images that are read again and again


def slow_input_grad(dtype: torch.dtype, stride: int) -> bool:
    """Whether oneDNN's own input gradient is the slow one."""
    return dtype is torch.bfloat16 and stride > 1


def slow_weight_grad(dtype: torch.dtype, height: int, kernel_size: int, stride: int) -> bool:
    """Whether oneDNN's own weight gradient is the slow one, for images of so many rows."""
    too_low = height < kernel_size + (stride > 1)
    return kernel_size > MAX_FAST or (kernel_size > 1 and too_low)


def tiles_are_slower(dtype: torch.dtype, kernel_size: int, stride: int) -> bool:
    """Whether the way around is slower still: nine tiles or more, with a stride."""
    return kernel_size > 5 and stride > 1 and dtype is not torch.bfloat16


def has_faster_gradients(
    x: Tensor, dtype: torch.dtype, weight: Tensor, stride: int, padding: int
) -> bool:
    """Whether :func:`backward` does better than PyTorch for this input, once it is of ``dtype``."""
    if slow_input_grad(dtype, stride):
        return True
    if slow_weight_grad(dtype, x.shape[2], weight.shape[-1], stride):
        return True
    return dtype is not torch.float64 and native.covers_depthwise(x, weight, stride, padding)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of input and weight, ``None`` where ``mask`` says that one is not needed."""
    need_x, need_weight = mask
    if need_weight and native.covers_depthwise(x, weight, stride, padding):
        return native.depthwise_backward(grad, x, weight, stride, padding, need_x)
    narrow = weight.to(x.dtype)
    return (
        input_grad(grad, x, narrow, stride, padding) if need_x else None,
        weight_grad(grad, x, narrow, stride, padding) if need_weight else None,
    )


def aten_forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """PyTorch's own convolution, in the type of ``x``."""
    return F.conv2d(x, weight.to(x.dtype), None, stride, padding, 1, x.shape[1])


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
    size = [side + 2 * padding - weight.shape[-1] + 1 for side in x.shape[2:]]
    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    spread = torch.empty(*grad.shape[:2], *size, dtype=grad.dtype, memory_format=layout).zero_()
    spread[..., ::stride, ::stride] = grad
    return aten_backward(spread, x, weight, 1, both, (True, False))[0]


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """``(C * depth_multiplier, 1, k, k)``."""
    size = weight.shape[-1]
    slow = x.numel() > 0 and slow_weight_grad(x.dtype, x.shape[2], size, stride)
    if not slow or tiles_are_slower(x.dtype, size, stride):
        if slow:
            case = f"{size} x {size}, stride {stride}, {x.dtype}"
            fallbacks[f"weight gradient on the CPU: {case}"] += 1
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
    # From the first to the last position of a tap.
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
    """First tap and number of taps, all as long as is fast; the last one overlaps."""
    starts = [*range(0, size - MAX_FAST, MAX_FAST), max(size - MAX_FAST, 0)]
    return [(start, min(MAX_FAST, size)) for start in starts]
