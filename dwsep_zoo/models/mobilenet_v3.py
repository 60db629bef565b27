"""MobileNetV3. Howard et al. 2019, arXiv:1905.02244."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from dwsep_zoo.models.spec import Architecture, Conv, Stage
from dwsep_zoo.nn import InvertedResidual, Layers, SqueezeExcite, make_divisible
from dwsep_zoo.nn.conv import Gate
from dwsep_zoo.nn.init import init_mobilenet

RE = partial(nn.ReLU, inplace=True)
HS = partial(nn.Hardswish, inplace=True)

Row = tuple[int, int, int, bool, Callable[[], nn.Module], int]

LARGE: tuple[Row, ...] = (
    # k, exp, out, SE, NL, s     Table 1        output at 224
    (3, 16, 16, False, RE, 1),  # 112
    (3, 64, 24, False, RE, 2),  # 56
    (3, 72, 24, False, RE, 1),
    (5, 72, 40, True, RE, 2),  # 28
    (5, 120, 40, True, RE, 1),
    (5, 120, 40, True, RE, 1),
    (3, 240, 80, False, HS, 2),  # 14
    (3, 200, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 480, 112, True, HS, 1),
    (3, 672, 112, True, HS, 1),
    (5, 672, 160, True, HS, 2),  # 7
    (5, 960, 160, True, HS, 1),
    (5, 960, 160, True, HS, 1),
)

SMALL: tuple[Row, ...] = (
    # k, exp, out, SE, NL, s     Table 2        output at 224
    (3, 16, 16, True, RE, 2),  # 56
    (3, 72, 24, False, RE, 2),  # 28
    (3, 88, 24, False, RE, 1),
    (5, 96, 40, True, HS, 2),  # 14
    (5, 240, 40, True, HS, 1),
    (5, 240, 40, True, HS, 1),
    (5, 120, 48, True, HS, 1),
    (5, 144, 48, True, HS, 1),
    (5, 288, 96, True, HS, 2),  # 7
    (5, 576, 96, True, HS, 1),
    (5, 576, 96, True, HS, 1),
)


def mobilenet_v3_large(width_mult: float = 1.0) -> Architecture:
    """Table 1."""
    return _mobilenet_v3(LARGE, 1280, width_mult)


def mobilenet_v3_small(width_mult: float = 1.0) -> Architecture:
    """Table 2, with the 1024-wide hidden layer of every released checkpoint (printed: 1280)."""
    return _mobilenet_v3(SMALL, 1024, width_mult)


def _mobilenet_v3(rows: tuple[Row, ...], hidden: int, width_mult: float) -> Architecture:
    """Google's width rule: expansions follow the width they expand, the hidden layer only grows."""

    def width(channels: float) -> int:
        return make_divisible(channels * width_mult)

    stages, last = [], 16
    for k, exp, out, se, act, stride in rows:
        block = partial(
            InvertedResidual,
            kernel_size=k,
            expand_ratio=exp / last,
            squeeze_excite=_squeeze_excite if se else None,
            act=act,
        )
        stages.append(Stage(block, width(out), stride=stride))
        last = out
    return Architecture(
        stem=(Conv(width(16), stride=2),),
        stages=tuple(stages),
        head=Conv(make_divisible(6 * width(last)), kernel_size=1),
        hidden=make_divisible(hidden * max(1.0, width_mult)),
        layers=Layers(HS),
        init=init_mobilenet,
        resolution=224,
        drop_rate=0.2,
    )


def _squeeze_excite(in_chans: int, expanded: int) -> Gate:
    """Section 5.3: a quarter of the expansion, with a hard sigmoid."""
    return partial(
        SqueezeExcite, squeeze_chans=make_divisible(expanded / 4), act=RE, gate=nn.Hardsigmoid
    )
