"""EfficientNet. Tan and Le 2019, arXiv:1905.11946."""

from __future__ import annotations

from functools import partial

from torch import nn

from dwsep_zoo.models.spec import Architecture, Conv, Stage
from dwsep_zoo.nn import InvertedResidual, Layers, SqueezeExcite, make_divisible
from dwsep_zoo.nn.conv import Gate
from dwsep_zoo.nn.init import init_efficientnet

SiLU = partial(nn.SiLU, inplace=True)


def efficientnet_b0(width_mult: float = 1.0) -> Architecture:
    """Table 1."""

    def width(channels: int) -> int:
        return make_divisible(channels * width_mult)

    def mbconv(t: int, k: int, c: int, n: int, s: int) -> Stage:
        block = partial(
            InvertedResidual, expand_ratio=t, kernel_size=k, squeeze_excite=_squeeze_excite
        )
        return Stage(block, width(c), n, s)

    return Architecture(
        stem=(Conv(width(32), stride=2),),
        stages=(
            #      t, k,   c, n, s      output at 224
            mbconv(1, 3, 16, 1, 1),  # 112
            mbconv(6, 3, 24, 2, 2),  # 56
            mbconv(6, 5, 40, 2, 2),  # 28
            mbconv(6, 3, 80, 3, 2),  # 14
            mbconv(6, 5, 112, 3, 1),  # 14
            mbconv(6, 5, 192, 4, 2),  # 7
            mbconv(6, 3, 320, 1, 1),  # 7
        ),
        head=Conv(width(1280), kernel_size=1),
        layers=Layers(SiLU),
        init=init_efficientnet,
        resolution=224,
        drop_rate=0.2,
        drop_path_rate=0.2,
    )


def _squeeze_excite(in_chans: int, expanded: int) -> Gate:
    """A quarter of the block's input, not of the expansion, as in the reference code."""
    return partial(SqueezeExcite, squeeze_chans=max(1, in_chans // 4), act=SiLU, gate=nn.Sigmoid)
