"""MobileNetV4, the convolutional ones. Qin et al. 2024, arXiv:2404.10518, appendix.

Dropout and stochastic depth are second-hand. The medium and the large network are those of the
released code and weights, somewhat larger than the paper says (9.7 instead of 9.2 and 32.6 instead
of 31 M parameters).
"""

from __future__ import annotations

from functools import partial

from dwsep_zoo.models.spec import Architecture, Conv, Stage
from dwsep_zoo.nn import (
    FusedInvertedResidual,
    Layers,
    UniversalInvertedBottleneck,
    make_divisible,
)
from dwsep_zoo.nn.init import init_efficientnet
from dwsep_zoo.nn.layers import ReLU

SMALL = (
    # k1, k2, t,   c, n, s     output at 224; k1, k2: depthwise before and after the expansion
    (5, 5, 3, 96, 1, 2),  # 14   extra depthwise
    (0, 3, 2, 96, 4, 1),  # inverted bottleneck
    (3, 0, 4, 96, 1, 1),  # ConvNeXt-like
    (3, 3, 6, 128, 1, 2),  # 7
    (5, 5, 4, 128, 1, 1),
    (0, 5, 4, 128, 1, 1),
    (0, 5, 3, 128, 1, 1),
    (0, 3, 4, 128, 2, 1),
)

MEDIUM = (
    # k1, k2, t,   c, n, s     output at 256
    (3, 5, 4, 80, 1, 2),  # 32
    (3, 3, 2, 80, 1, 1),
    (3, 5, 6, 160, 1, 2),  # 16
    (3, 3, 4, 160, 2, 1),
    (3, 5, 4, 160, 1, 1),
    (3, 3, 4, 160, 1, 1),
    (3, 0, 4, 160, 1, 1),
    (0, 0, 2, 160, 1, 1),  # feed-forward
    (3, 0, 4, 160, 1, 1),
    (5, 5, 6, 256, 1, 2),  # 8
    (5, 5, 4, 256, 1, 1),
    (3, 5, 4, 256, 2, 1),
    (0, 0, 4, 256, 1, 1),
    (3, 0, 4, 256, 1, 1),
    (3, 5, 2, 256, 1, 1),
    (5, 5, 4, 256, 1, 1),
    (0, 0, 4, 256, 2, 1),
    (5, 0, 2, 256, 1, 1),
)

LARGE = (
    # k1, k2, t,   c, n, s     output at 384
    (3, 5, 4, 96, 1, 2),  # 48
    (3, 3, 4, 96, 1, 1),
    (3, 5, 4, 192, 1, 2),  # 24
    (3, 3, 4, 192, 3, 1),
    (3, 5, 4, 192, 1, 1),
    (5, 3, 4, 192, 5, 1),
    (3, 0, 4, 192, 1, 1),
    (5, 5, 4, 512, 4, 2),  # 12
    (5, 0, 4, 512, 1, 1),
    (5, 3, 4, 512, 1, 1),
    (5, 0, 4, 512, 2, 1),
    (5, 3, 4, 512, 1, 1),
    (5, 5, 4, 512, 1, 1),
    (5, 0, 4, 512, 3, 1),
)


def mobilenet_v4_conv_small(width_mult: float = 1.0) -> Architecture:
    """Its first two stages are plain convolutions."""

    def width(channels: int) -> int:
        return make_divisible(channels * width_mult)

    stem = (
        Conv(width(32), stride=2),  # 112
        Conv(width(32), stride=2),  # 56
        Conv(width(32), kernel_size=1),
        Conv(width(96), stride=2),  # 28
        Conv(width(64), kernel_size=1),
    )
    return _mobilenet_v4(stem, (), SMALL, width_mult, 224, 0.3, 0.0, top1=73.8)


def mobilenet_v4_conv_medium(width_mult: float = 1.0) -> Architecture:
    """The middle one, at 256 pixels."""
    return _with_fused_block(
        32, MEDIUM, width_mult, resolution=256, drop_path_rate=0.075, top1=79.9
    )


def mobilenet_v4_conv_large(width_mult: float = 1.0) -> Architecture:
    """The large one, at 384 pixels."""
    return _with_fused_block(24, LARGE, width_mult, resolution=384, drop_path_rate=0.35, top1=82.9)


Rows = tuple[tuple[int, int, float, int, int, int], ...]


def _with_fused_block(
    stem: int,
    rows: Rows,
    width_mult: float,
    resolution: int,
    drop_path_rate: float,
    top1: float,
) -> Architecture:
    fused = Stage(
        partial(FusedInvertedResidual, expand_ratio=4), make_divisible(48 * width_mult), stride=2
    )
    conv = Conv(make_divisible(stem * width_mult), stride=2)
    return _mobilenet_v4((conv,), (fused,), rows, width_mult, resolution, 0.2, drop_path_rate, top1)


def _mobilenet_v4(
    stem: tuple[Conv, ...],
    first: tuple[Stage, ...],
    rows: Rows,
    width_mult: float,
    resolution: int,
    drop_rate: float,
    drop_path_rate: float,
    top1: float,
) -> Architecture:
    def uib(k1: int, k2: int, t: float, c: int, n: int, s: int) -> Stage:
        block = partial(UniversalInvertedBottleneck, start=k1, middle=k2, expand_ratio=t)
        return Stage(block, make_divisible(c * width_mult), n, s)

    return Architecture(
        stem=stem,
        stages=(*first, *(uib(*row) for row in rows)),
        head=Conv(make_divisible(960 * width_mult), kernel_size=1),
        hidden=1280,
        hidden_norm=True,
        layers=Layers(ReLU),
        init=init_efficientnet,
        resolution=resolution,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        top1=top1,
    )
