"""EfficientNet, Tan and Le 2019, arXiv:1905.11946, and EfficientNet-Lite."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import nn

from dwsep_zoo.models.spec import Architecture, Conv, Stage
from dwsep_zoo.nn import InvertedResidual, Layers, SqueezeExcite, make_divisible
from dwsep_zoo.nn.conv import Gate
from dwsep_zoo.nn.init import init_efficientnet
from dwsep_zoo.nn.layers import ReLU6, SiLU

ROWS = (
    # t, k,   c, n, s     Table 1      output at 224
    (1, 3, 16, 1, 1),  # 112
    (6, 3, 24, 2, 2),  # 56
    (6, 5, 40, 2, 2),  # 28
    (6, 3, 80, 3, 2),  # 14
    (6, 5, 112, 3, 1),  # 14
    (6, 5, 192, 4, 2),  # 7
    (6, 3, 320, 1, 1),  # 7
)

SCALES = {
    # name: width, depth, resolution, dropout, top-1     section 5.2, Table 2
    "b0": (1.0, 1.0, 224, 0.2, 77.1),
    "b1": (1.0, 1.1, 240, 0.2, 79.1),
    "b2": (1.1, 1.2, 260, 0.3, 80.1),
    "b3": (1.2, 1.4, 300, 0.3, 81.6),
    "b4": (1.4, 1.8, 380, 0.4, 82.9),
    "b5": (1.6, 2.2, 456, 0.4, 83.6),
    "b6": (1.8, 2.6, 528, 0.5, 84.0),
    "b7": (2.0, 3.1, 600, 0.5, 84.3),
}

LITE_SCALES = {
    # name: width, depth, resolution, dropout, top-1     README of the official release
    "lite0": (1.0, 1.0, 224, 0.2, 75.1),
    "lite1": (1.0, 1.1, 240, 0.2, 76.7),
    "lite2": (1.1, 1.2, 260, 0.3, 77.6),
    "lite3": (1.2, 1.4, 280, 0.3, 79.8),
    "lite4": (1.4, 1.8, 300, 0.3, 81.5),
}


def efficientnet(scale: str, width_mult: float = 1.0, depth_mult: float = 1.0) -> Architecture:
    """B0 to B7: Table 1, scaled in width, depth and resolution (equation 3)."""
    width, depth, resolution, drop_rate, top1 = SCALES[scale]

    def scaled(channels: int) -> int:
        return make_divisible(channels * width * width_mult)

    def mbconv(t: int, k: int, c: int, n: int, s: int) -> Stage:
        block = partial(
            InvertedResidual, expand_ratio=t, kernel_size=k, squeeze_excite=_squeeze_excite
        )
        return Stage(block, scaled(c), math.ceil(n * depth * depth_mult), s)

    return Architecture(
        stem=(Conv(scaled(32), stride=2),),
        stages=tuple(mbconv(*row) for row in ROWS),
        head=Conv(scaled(1280), kernel_size=1),
        layers=Layers(SiLU),
        init=init_efficientnet,
        resolution=resolution,
        drop_rate=drop_rate,
        drop_path_rate=0.2,
        top1=top1,
    )


def efficientnet_lite(scale: str, width_mult: float = 1.0, depth_mult: float = 1.0) -> Architecture:
    """No squeeze-and-excite, ReLU6; stem, head and the depth of the outer stages are not scaled."""
    width, depth, resolution, drop_rate, top1 = LITE_SCALES[scale]

    def mbconv(t: int, k: int, c: int, n: int, s: int) -> Stage:
        outer = c in (ROWS[0][2], ROWS[-1][2])
        repeats = n if outer else math.ceil(n * depth)
        block = partial(InvertedResidual, expand_ratio=t, kernel_size=k)
        channels = make_divisible(c * width * width_mult)
        return Stage(block, channels, math.ceil(repeats * depth_mult), s)

    return Architecture(
        stem=(Conv(make_divisible(32 * width_mult), stride=2),),
        stages=tuple(mbconv(*row) for row in ROWS),
        head=Conv(make_divisible(1280 * width_mult), kernel_size=1),
        layers=Layers(ReLU6),
        init=init_efficientnet,
        resolution=resolution,
        drop_rate=drop_rate,
        drop_path_rate=0.2,
        top1=top1,
    )


EFFICIENTNETS: dict[str, Callable[..., Architecture]] = {
    **{f"efficientnet_{scale}": partial(efficientnet, scale) for scale in SCALES},
    **{f"efficientnet_{scale}": partial(efficientnet_lite, scale) for scale in LITE_SCALES},
}


def _squeeze_excite(in_chans: int, expanded: int) -> Gate:
    """A quarter of the block's input, not of the expansion, as in the reference code."""
    return partial(SqueezeExcite, squeeze_chans=max(1, in_chans // 4), act=SiLU, gate=nn.Sigmoid)
