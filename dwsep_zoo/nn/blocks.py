"""The blocks of all architectures, built around one injected convolution operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from dwsep_zoo.nn.conv import ConvOp, Gate
from dwsep_zoo.nn.layers import Act, Layers, Mid


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to a multiple of ``divisor``, never below 90 % of ``value``.

    This is the width rule in the reference code of all MobileNets.
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
        padded: bool = True,
    ):
        super().__init__()
        self.conv = layers.conv(in_chans, out_chans, kernel_size, stride, padded=padded)
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
        act: Act,
        gate: Callable[[], nn.Module],
    ):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(chans, squeeze_chans, 1)
        self.act = act()
        self.expand = nn.Conv2d(squeeze_chans, chans, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class SeparableConv(nn.Sequential):
    """The factorised convolution, norm, activation: MobileNetV1's rows and Xception's last two.

    It has no shortcut, so it ignores ``drop_path``, which every block receives.
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
    The gate, if any, sits between depthwise and projection.

    Args:
        expand_ratio: width of the middle over ``in_chans``; 1 means no expansion.
        squeeze_excite: maps ``in_chans`` and the expanded width to a gate factory.
        act: activation of this block; ``None``: the architecture's.
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
        act: Act | None = None,
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


class UniversalInvertedBottleneck(nn.Module):
    """Optional depthwise, expansion, optional depthwise, linear projection, shortcut.

    With both depthwise kernels it is the paper's ExtraDW, with only the second the inverted
    bottleneck of MobileNetV2, with only the first ConvNeXt-like, with none a feed-forward network.
    Each depthwise and the 1 x 1 after it form one factorised convolution. Qin et al. 2024,
    arXiv:2404.10518, section 3. The second depthwise, if any, has the stride.

    Args:
        start: kernel size of the depthwise before the expansion; 0: none.
        middle: kernel size of the depthwise after it; 0: none.
        expand_ratio: width of the middle over ``in_chans``.
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
        start: int,
        middle: int,
        expand_ratio: float,
    ):
        super().__init__()
        chans = make_divisible(in_chans * expand_ratio)
        self.has_shortcut = stride == 1 and in_chans == out_chans
        self.expand = nn.Sequential()
        self.expand.conv = (
            conv(in_chans, chans, start, 1 if middle else stride, layers=layers, mid="norm")
            if start
            else layers.conv(in_chans, chans)
        )
        self.expand.norm = layers.norm(chans)
        self.expand.act = layers.act()
        self.conv = (
            conv(chans, out_chans, middle, stride, layers=layers, mid="norm_act")
            if middle
            else layers.conv(chans, out_chans)
        )
        self.norm = layers.norm(out_chans)
        self.drop_path = _drop_path(drop_path if self.has_shortcut else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(self.expand(x)))
        return x + self.drop_path(y) if self.has_shortcut else y


class FusedInvertedResidual(nn.Module):
    """A dense k x k expansion and a linear 1 x 1 projection: MobileNetV4's first block.

    It has no depthwise convolution that ``conv`` could replace. Tan and Le 2021, arXiv:2104.00298,
    Figure 2 (Fused-MBConv). It has no shortcut, because MobileNetV4 uses it only with stride 2.
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
        expand_ratio: float,
    ):
        super().__init__()
        chans = make_divisible(in_chans * expand_ratio)
        self.expand = ConvNormAct(in_chans, chans, kernel_size, stride, layers=layers)
        self.conv = layers.conv(chans, out_chans)
        self.norm = layers.norm(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.expand(x)))


class XceptionBlock(nn.Module):
    """Activation and separable convolution, two or three times, with a shortcut around them.

    The stride is a max-pooling at the end. The shortcut is a 1 x 1 convolution if there is a stride
    or the width changes. Chollet 2017, arXiv:1610.02357, Figure 5. The aligned Xception has the
    stride in its last separable convolution instead, and a norm between the factors: Chen et al.
    2018, arXiv:1802.02611, Figure 4.

    Args:
        in_chans: input channels.
        out_chans: output channels, the last of ``widths``.
        widths: output channels of each separable convolution.
        first_act: whether the block begins with an activation; the network's first one does not.
        pool: whether the stride is a max-pooling.
        mid: layers between depthwise and pointwise.
        shortcut: whether the block has a shortcut.
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
        pool: bool = True,
        mid: Mid = "none",
        shortcut: bool = True,
    ):
        super().__init__()
        self.body = nn.Sequential()
        chans = in_chans
        for i, width in enumerate(widths):
            step = stride if i == len(widths) - 1 and not pool else 1
            unit = nn.Sequential()
            if i > 0 or first_act:
                # The shortcut shares the first activation's input.
                unit.add_module("act", layers.act(inplace=i > 0))
            unit.add_module("conv", conv(chans, width, 3, step, layers=layers, mid=mid))
            unit.add_module("norm", layers.norm(width))
            self.body.append(unit)
            chans = width
        self.pool = layers.max_pool(3, stride) if pool and stride > 1 else nn.Identity()
        self.shortcut: nn.Module | None = nn.Identity() if shortcut else None
        if shortcut and (stride > 1 or in_chans != out_chans):
            self.shortcut = nn.Sequential(
                layers.conv(in_chans, out_chans, 1, stride), layers.norm(out_chans)
            )
        self.drop_path = _drop_path(drop_path if shortcut else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.body(x))
        return y if self.shortcut is None else self.drop_path(y) + self.shortcut(x)


def _drop_path(rate: float) -> nn.Module:
    if rate == 0:
        return nn.Identity()
    from timm.layers import DropPath  # importing timm takes a second

    return DropPath(rate)
