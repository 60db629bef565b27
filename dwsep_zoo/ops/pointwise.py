"""The pointwise convolution as a matrix product, where PyTorch's convolution is slow.

Both compute the same sums. On the CPU, oneDNN's convolutions are slow if a batch has few pixels,
above all the weight's gradient: with 1024 channels and 512 pixels the three products of a training
step take about a third of the time of the three convolutions, with 2048 pixels two thirds to three
quarters, and beyond some thousands the same time. In a squeeze-and-excite, with one pixel per
image, and in narrow layers they take about half of it. In float32 the turning point comes earlier.

On a GPU in half precision both are equally fast, but cuDNN has to try all its kernels for every
shape, which takes most of a minute per network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep_zoo.ops.dtype import autocast_dtype
from dwsep_zoo.ops.fallback import plain

MAX_PIXELS = {torch.bfloat16: 4096, torch.float32: 2048}  # in a batch, on the CPU


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve ``(N, C, H, W)`` with a 1 x 1 weight, ``(C', C, 1, 1)``."""
    if _is_a_product(x):
        # A view in channels_last, where the pixels are rows of channels.
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, 1, 0, 1, 1)


def _is_a_product(x: Tensor) -> bool:
    return (
        not plain(x)
        and torch.is_grad_enabled()
        and x.requires_grad
        and _is_faster(x)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _is_faster(x: Tensor) -> bool:
    if x.is_cuda:
        return autocast_dtype(x) in (torch.bfloat16, torch.float16) and x.numel() > 0
    pixels = x.numel() // x.shape[1]
    return x.device.type == "cpu" and 0 < pixels <= MAX_PIXELS.get(autocast_dtype(x), 0)
