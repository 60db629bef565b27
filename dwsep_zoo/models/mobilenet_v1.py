"""MobileNetV1. Howard et al. 2017, arXiv:1704.04861."""

from __future__ import annotations

from dwsep_zoo.models.spec import Architecture, Conv, Stage
from dwsep_zoo.nn import Layers, SeparableConv, make_divisible
from dwsep_zoo.nn.init import init_mobilenet
from dwsep_zoo.nn.layers import ReLU


def mobilenet_v1(width_mult: float = 1.0) -> Architecture:
    """Table 1, with the paper's alpha as ``width_mult``.

    The activation is the ReLU of the text; TF-Slim's code has ReLU6. The last row is printed with
    stride 2 at 7 x 7; it is 1, as the 569 M multiply-adds require.
    """
    return _mobilenet_v1(width_mult, middle=6, top1=70.6)


def mobilenet_v1_shallow(width_mult: float = 1.0) -> Architecture:
    """Table 5: without the five blocks of 512 channels at 14 x 14."""
    return _mobilenet_v1(width_mult, middle=1, top1=65.3)


def _mobilenet_v1(width_mult: float, middle: int, top1: float) -> Architecture:
    def width(channels: int) -> int:
        return make_divisible(channels * width_mult)

    def conv_dw(channels: int, repeats: int, stride: int) -> Stage:
        return Stage(SeparableConv, width(channels), repeats, stride)

    return Architecture(
        stem=(Conv(width(32), stride=2),),
        stages=(
            #          c, n, s      output at 224
            conv_dw(64, 1, 1),  # 112
            conv_dw(128, 2, 2),  # 56
            conv_dw(256, 2, 2),  # 28
            conv_dw(512, middle, 2),  # 14
            conv_dw(1024, 2, 2),  # 7
        ),
        layers=Layers(ReLU),
        init=init_mobilenet,
        resolution=224,
        drop_rate=0.001,
        top1=top1,
    )
