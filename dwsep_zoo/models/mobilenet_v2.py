"""MobileNetV2. Sandler et al. 2018, arXiv:1801.04381."""

from __future__ import annotations

from functools import partial

from dwsep_zoo.models.spec import Architecture, Conv, Stage
from dwsep_zoo.nn import InvertedResidual, Layers, make_divisible
from dwsep_zoo.nn.init import init_mobilenet
from dwsep_zoo.nn.layers import ReLU6


def mobilenet_v2(width_mult: float = 1.0) -> Architecture:
    """Table 2. The head is not narrowed below 1280 (section 6.1)."""

    def width(channels: int) -> int:
        return make_divisible(channels * width_mult)

    def bottleneck(t: int, c: int, n: int, s: int) -> Stage:
        return Stage(partial(InvertedResidual, expand_ratio=t), width(c), n, s)

    return Architecture(
        stem=(Conv(width(32), stride=2),),
        stages=(
            #          t,   c, n, s      output at 224
            bottleneck(1, 16, 1, 1),  # 112
            bottleneck(6, 24, 2, 2),  # 56
            bottleneck(6, 32, 3, 2),  # 28
            bottleneck(6, 64, 4, 2),  # 14
            bottleneck(6, 96, 3, 1),  # 14
            bottleneck(6, 160, 3, 2),  # 7
            bottleneck(6, 320, 1, 1),  # 7
        ),
        head=Conv(make_divisible(1280 * max(1.0, width_mult)), kernel_size=1),
        layers=Layers(ReLU6),
        init=init_mobilenet,
        resolution=224,
        drop_rate=0.2,
        top1=72.0,
    )
