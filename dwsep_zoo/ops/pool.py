"""Channels together with their means, with a cheaper gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def pool_beside(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x``, ``(N, C, H, W)``, and its means over the pixels, ``(N, C, 1, 1)``.

    PyTorch writes the full gradient of the means in another layout before adding it to that of
    ``x``, which took a seventh of EfficientNet-B0's step on a CPU. Here one pass over memory adds
    both.
    """
    if torch.compiler.is_compiling() or not (x.requires_grad and torch.is_grad_enabled()):
        return x, F.adaptive_avg_pool2d(x, 1)
    return _PoolBeside.apply(x)


class _PoolBeside(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.pixels = x.shape[2] * x.shape[3]
        return x.view_as(x), F.adaptive_avg_pool2d(x, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_means: Tensor) -> Tensor:
        return grad + grad_means / ctx.pixels
