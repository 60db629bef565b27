"""The pointwise convolution as a product of matrices, where PyTorch's convolution is slow.

Both are the same sums. On the CPU oneDNN's bfloat16 convolutions lose time where a batch has few
pixels, above all in the weight's gradient: with 1024 channels and 512 pixels the three products of
a training step take little more than a third of the time of the three convolutions, with 2048 three
quarters; beyond some thousands they are equal. Those of a squeeze-and-excite, with one pixel an
image, take about half of the time. In float32 the convolutions are faster.

On a GPU in half precision the two are as fast, but for that cuDNN has to try all its kernels for
every shape, which takes most of a minute for a network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep_zoo.ops.dtype import autocast_dtype
from dwsep_zoo.ops.fallback import plain

MAX_PIXELS = 4096  # of a batch


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1 x 1 convolution of ``(N, C, H, W)`` with a weight of ``(C', C, 1, 1)``."""
    if _is_a_product(x):
        # In channels_last this is a view, an image's pixels being rows of channels.
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
    return (
        x.device.type == "cpu"
        and autocast_dtype(x) is torch.bfloat16
        and 0 < x.numel() // x.shape[1] <= MAX_PIXELS
    )
