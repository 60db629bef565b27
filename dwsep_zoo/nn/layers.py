"""The elementary layers of an architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

Mid = Literal["norm_act", "norm", "none"]
Padding = Literal["symmetric", "same"]
Size = int | tuple[int, int]
Act = Callable[..., nn.Module]

ACT_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard_swish": nn.Hardswish,
    "silu": nn.SiLU,
}
"""Keys are those of :data:`dwsep_zoo.ops.norm.ACTS`."""

ACTS: dict[str, Act] = {name: partial(module, inplace=True) for name, module in ACT_MODULES.items()}
ReLU, ReLU6, HardSwish, SiLU = (ACTS[name] for name in ("relu", "relu6", "hard_swish", "silu"))


def pad_same(x: Tensor, kernel_size: Size, stride: Size, value: float = 0.0) -> Tensor:
    """TensorFlow's ``SAME``: ceil(size / stride) outputs, the odd pixel at the bottom and right."""
    pads: list[int] = []
    sides = zip(x.shape[2:], _pair(kernel_size), _pair(stride), strict=True)
    for size, kernel, step in reversed(list(sides)):
        total = max((-(-size // step) - 1) * step + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value) if any(pads) else x


class Conv2dSame(nn.Conv2d):
    """``nn.Conv2d`` with TensorFlow's ``SAME`` padding, which depends on the input size."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.pad(input))

    def pad(self, input: Tensor) -> Tensor:
        return pad_same(input, _pair(self.kernel_size), _pair(self.stride))


class MaxPool2dSame(nn.MaxPool2d):
    """``nn.MaxPool2d`` with TensorFlow's ``SAME`` padding."""

    def forward(self, input: Tensor) -> Tensor:
        padded = pad_same(input, self.kernel_size, self.stride, value=float("-inf"))
        return super().forward(padded)


def is_depthwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it convolves each channel by itself."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is a dense 1 x 1 convolution of every pixel."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == module.stride == (1, 1)
        and module.padding == (0, 0)
        and module.groups == 1
    )


@dataclass(frozen=True)
class Layers:
    """Factory of an architecture's convolutions, norms and activations.

    Args:
        act: factory of the activation; called with ``inplace=False`` if its input is needed later.
        bn_eps: epsilon of the batch normalisations.
        bn_momentum: weight of the newest batch in the running statistics (1 - TensorFlow's decay).
        padding: ``symmetric``, (k - 1) / 2 zeros on each side, or TensorFlow's ``same``. They
            differ for stride 2 and an even size.
    """

    act: Act
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1
    padding: Padding = "symmetric"

    def conv(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: Size = 1,
        stride: Size = 1,
        *,
        groups: int = 1,
        padded: bool = True,
    ) -> nn.Conv2d:
        """Make a convolution without bias; ``padded=False``: without padding ("valid")."""
        # For stride 1 and an odd kernel, both paddings are equal.
        same = self.padding == "same" and padded and max(_pair(stride)) > 1
        kernel = _pair(kernel_size)
        pads = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2) if padded and not same else (0, 0)
        return (Conv2dSame if same else nn.Conv2d)(
            in_chans, out_chans, kernel_size, stride, pads, groups=groups, bias=False
        )

    def norm(self, chans: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(chans, eps=self.bn_eps, momentum=self.bn_momentum)

    def norm_1d(self, chans: int) -> nn.BatchNorm1d:
        return nn.BatchNorm1d(chans, eps=self.bn_eps, momentum=self.bn_momentum)

    def max_pool(self, kernel_size: int, stride: int) -> nn.MaxPool2d:
        if self.padding == "same":
            return MaxPool2dSame(kernel_size, stride)
        return nn.MaxPool2d(kernel_size, stride, padding=kernel_size // 2)

    def mid(self, kind: Mid, chans: int) -> nn.Module | None:
        """Make the layers between the two factors of a factorised convolution."""
        if kind == "none":
            return None
        return (
            nn.Sequential(self.norm(chans), self.act()) if kind == "norm_act" else self.norm(chans)
        )


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
