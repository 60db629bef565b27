"""Xception. Chollet 2017, arXiv:1610.02357."""

from __future__ import annotations

from functools import partial

from torch import nn

from dwsep_zoo.models.spec import Architecture, Conv, Stage
from dwsep_zoo.nn import Layers, SeparableConv, XceptionBlock, make_divisible
from dwsep_zoo.nn.init import init_xception


def xception(width_mult: float = 1.0) -> Architecture:
    """Figure 5. Neither norm nor activation lies between depthwise and pointwise (Figure 10)."""

    def width(channels: int) -> int:
        return make_divisible(channels * width_mult)

    def flow(*channels: int, repeats: int = 1, stride: int = 1, first_act: bool = True) -> Stage:
        widths = tuple(width(c) for c in channels)
        block = partial(XceptionBlock, widths=widths, first_act=first_act)
        return Stage(block, widths[-1], repeats, stride)

    def sep_conv(channels: int) -> Stage:
        return Stage(partial(SeparableConv, mid="none"), width(channels))

    return Architecture(
        stem=(
            Conv(width(32), stride=2, padding=0),  # 149, at 299
            Conv(width(64), padding=0),  # 147
        ),
        stages=(
            # entry flow
            flow(128, 128, stride=2, first_act=False),  # 74
            flow(256, 256, stride=2),  # 37
            flow(728, 728, stride=2),  # 19
            # middle flow
            flow(728, 728, 728, repeats=8),  # 19
            # exit flow
            flow(728, 1024, stride=2),  # 10
            sep_conv(1536),
            sep_conv(2048),
        ),
        layers=Layers(nn.ReLU),
        init=init_xception,
        resolution=299,
        drop_rate=0.5,
    )
