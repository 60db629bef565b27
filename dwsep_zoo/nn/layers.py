"""The elementary layers of an architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from dwsep_zoo.ops import depthwise_conv2d

Mid = Literal["norm_act", "norm", "none"]


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with one group a channel, no bias, and :func:`depthwise_conv2d` as operator."""

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int, stride: int, padding: int):
        super().__init__(
            in_chans, out_chans, kernel_size, stride, padding, groups=in_chans, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:
        return depthwise_conv2d(input, self.weight, self.stride[0], int(self.padding[0]))


@dataclass(frozen=True)
class Layers:
    """How an architecture convolves, normalises and activates, everywhere alike.

    Args:
        act: makes the activation module.
        bn_eps: epsilon of the batch normalisations.
        bn_momentum: weight of the newest batch in the running statistics (1 - TensorFlow's decay).
    """

    act: Callable[[], nn.Module]
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1

    def conv(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        padding: int | None = None,
    ) -> nn.Conv2d:
        """A convolution without bias, padded with (k - 1) / 2 zeros on each side unless told."""
        padding = (kernel_size - 1) // 2 if padding is None else padding
        if groups == in_chans > 1:
            return DepthwiseConv2d(in_chans, out_chans, kernel_size, stride, padding)
        return nn.Conv2d(
            in_chans, out_chans, kernel_size, stride, padding, groups=groups, bias=False
        )

    def norm(self, chans: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(chans, eps=self.bn_eps, momentum=self.bn_momentum)

    def mid(self, kind: Mid, chans: int) -> nn.Module | None:
        """What lies between the two factors of a factorised convolution."""
        if kind == "none":
            return None
        return (
            nn.Sequential(self.norm(chans), self.act()) if kind == "norm_act" else self.norm(chans)
        )
