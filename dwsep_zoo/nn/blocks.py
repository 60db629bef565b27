"""The blocks of all five families, built around one injected convolution operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from dwsep_zoo.nn.conv import ConvOp, Gate
from dwsep_zoo.nn.layers import Layers, Mid


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to a multiple of ``divisor``, never below 90 % of ``value``.

    The width rule of all MobileNets' reference code.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class ConvNormAct(nn.Sequential):
    """Dense k x k convolution, norm, activation: stems, expansions and heads."""

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        layers: Layers,
        padding: int | None = None,
    ):
        super().__init__()
        self.conv = layers.conv(in_chans, out_chans, kernel_size, stride, padding=padding)
        self.norm = layers.norm(out_chans)
        self.act = layers.act()


class SqueezeExcite(nn.Module):
    """Channel gate: pool, reduce, activate, expand, gate, multiply.

    Hu et al. 2018, arXiv:1709.01507, equations 2 to 4.
    """

    def __init__(
        self,
        chans: int,
        squeeze_chans: int,
        act: Callable[[], nn.Module],
        gate: Callable[[], nn.Module],
    ):
        super().__init__()
        self.reduce = nn.Conv2d(chans, squeeze_chans, 1)
        self.act = act()
        self.expand = nn.Conv2d(squeeze_chans, chans, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        return x * self.gate(self.expand(self.act(self.reduce(pooled))))


class SeparableConv(nn.Sequential):
    """The factorised convolution, norm, activation: one row of MobileNetV1, Xception's last two.

    It has no shortcut, so ``drop_path``, which every block is given, has nothing to drop.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int = 1,
        *,
        conv: ConvOp,
        layers: Layers,
        drop_path: float = 0.0,
        mid: Mid = "norm_act",
    ):
        super().__init__()
        self.conv = conv(in_chans, out_chans, 3, stride, layers=layers, mid=mid)
        self.norm = layers.norm(out_chans)
        self.act = layers.act()


class InvertedResidual(nn.Module):
    """1 x 1 expansion, factorised convolution with a linear output, shortcut.

    One block for MobileNetV2 (bottleneck), V3 (bneck) and EfficientNet (MBConv). Sandler et al.
    2018, arXiv:1801.04381, Table 1 and Figure 3; Howard et al. 2019, arXiv:1905.02244, Figure 4.
    The gate, where there is one, sits between depthwise and projection.

    Args:
        expand_ratio: width of the middle over ``in_chans``; 1 leaves the expansion out.
        squeeze_excite: from ``in_chans`` and the expanded width to the gate.
        act: this block's activation, if not the architecture's.
        drop_path: probability of dropping the residual branch of an image in training.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int = 1,
        *,
        conv: ConvOp,
        layers: Layers,
        drop_path: float = 0.0,
        kernel_size: int = 3,
        expand_ratio: float = 6,
        squeeze_excite: Callable[[int, int], Gate] | None = None,
        act: Callable[[], nn.Module] | None = None,
    ):
        super().__init__()
        layers = replace(layers, act=act) if act else layers
        chans = make_divisible(in_chans * expand_ratio)
        self.has_shortcut = stride == 1 and in_chans == out_chans
        self.expand = (
            ConvNormAct(in_chans, chans, layers=layers) if expand_ratio != 1 else nn.Identity()
        )
        self.conv = conv(
            chans,
            out_chans,
            kernel_size,
            stride,
            layers=layers,
            mid="norm_act",
            gate=squeeze_excite and squeeze_excite(in_chans, chans),
        )
        self.norm = layers.norm(out_chans)
        self.drop_path = _drop_path(drop_path if self.has_shortcut else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(self.expand(x)))
        return x + self.drop_path(y) if self.has_shortcut else y


class XceptionBlock(nn.Module):
    """Activation and separable convolution, two or three times, with a shortcut around them.

    A stride is a max-pooling at the end; the shortcut then is a strided 1 x 1 convolution, as it is
    where the width changes. Chollet 2017, arXiv:1610.02357, Figure 5.

    Args:
        in_chans: input channels.
        out_chans: output channels, the last of ``widths``.
        widths: output channels of each separable convolution.
        first_act: whether the block begins with an activation; the first one does not.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int = 1,
        *,
        conv: ConvOp,
        layers: Layers,
        drop_path: float = 0.0,
        widths: tuple[int, ...],
        first_act: bool = True,
    ):
        super().__init__()
        self.body = nn.Sequential()
        chans = in_chans
        for i, width in enumerate(widths):
            unit = nn.Sequential()
            if i > 0 or first_act:
                unit.add_module("act", layers.act())
            unit.add_module("conv", conv(chans, width, 3, 1, layers=layers, mid="none"))
            unit.add_module("norm", layers.norm(width))
            self.body.append(unit)
            chans = width
        self.pool = nn.MaxPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_chans != out_chans:
            self.shortcut = nn.Sequential(
                layers.conv(in_chans, out_chans, 1, stride), layers.norm(out_chans)
            )
        self.drop_path = _drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.pool(self.body(x))) + self.shortcut(x)


def _drop_path(rate: float) -> nn.Module:
    if rate == 0:
        return nn.Identity()
    from timm.layers import DropPath  # timm takes a second to import

    return DropPath(rate)
