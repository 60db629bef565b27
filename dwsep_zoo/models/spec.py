"""An architecture as frozen rows, in the column order of its paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import nn

from dwsep_zoo.errors import UserError
from dwsep_zoo.nn.layers import Layers


@dataclass(frozen=True)
class Conv:
    """A row outside the blocks (stem, head): dense convolution, norm, activation."""

    channels: int
    kernel_size: int = 3
    stride: int = 1
    padded: bool = True


@dataclass(frozen=True)
class Stage:
    """``repeats`` equal blocks; the first one has the stride.

    ``block`` is called as ``block(in_chans, out_chans, stride, conv=, layers=, drop_path=)``.
    """

    block: Callable[..., nn.Module]
    channels: int
    repeats: int = 1
    stride: int = 1


Row = TypeVar("Row", Conv, Stage)


@dataclass(frozen=True)
class Architecture:
    """Stem -> stages -> head -> average pool -> hidden layer -> dropout -> classifier."""

    stem: tuple[Conv, ...]
    stages: tuple[Stage, ...]
    layers: Layers
    init: Callable[[nn.Module], None]
    resolution: int  # pixels, of the paper's main result
    head: Conv | None = None
    hidden: int = 0  # width of a fully connected layer after the pooling; 0: none
    hidden_norm: bool = False  # a norm, instead of a bias, in that layer
    drop_rate: float = 0.0  # dropout before the classifier
    drop_path_rate: float = 0.0  # block i of n has i / n of it
    top1: float | None = None  # per cent on ImageNet at width 1, as the paper has it

    @property
    def output_stride(self) -> int:
        """Input pixels per pixel of the last feature map."""
        stem = math.prod(row.stride for row in self.stem)
        return stem * math.prod(row.stride for row in self.stages)


def with_output_stride(arch: Architecture, output_stride: int) -> Architecture:
    """Turn the earliest strides into 1 until the network reduces by ``output_stride``.

    This is how the small-image versions of these networks are made: the tables stay the paper's.

    Raises:
        UserError: if ``output_stride`` is not 1, 2, 4, ... up to the paper's.
    """
    choices = [2**i for i in range(arch.output_stride.bit_length())]
    if output_stride not in choices:
        raise UserError(f"model.output_stride must be one of {choices}; got {output_stride!r}")
    surplus = arch.output_stride // output_stride

    def thin(row: Row) -> Row:
        nonlocal surplus
        if row.stride == 1 or surplus == 1:
            return row
        surplus //= row.stride
        return replace(row, stride=1)

    stem = tuple(thin(row) for row in arch.stem)
    return replace(arch, stem=stem, stages=tuple(thin(row) for row in arch.stages))
