"""Layers that one kernel computes, as arguments of the kernels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Norm(NamedTuple):
    """A batch norm with the batch's own statistics, then an activation."""

    weight: Tensor | None = None  # (C,) float32; None: no norm
    bias: Tensor | None = None  # (C,) float32, added last before the activation
    eps: float = 0.0  # added to the variance
    act: str = "identity"  # a key of dwsep_zoo.ops.norm.ACTS
    synced: bool = False  # the batch is that of all ranks of the default process group


class Depthwise(NamedTuple):
    """A depthwise convolution."""

    taps: Tensor  # (C, 1, k, k) float32
    stride: int
    padding: int  # zeros on each side, in pixels


class Fusion(NamedTuple):
    """Expansion, norm, activation, depthwise convolution, norm, activation; or some of them."""

    norm: Norm = Norm()
    conv: Depthwise | None = None
    norm2: Norm = Norm()
    expand: Tensor | None = None  # (C, C', 1, 1), the 1 x 1 convolution at the beginning
