"""Xception, Chollet 2017, arXiv:1610.02357, and the aligned Xception, arXiv:1802.02611."""

from __future__ import annotations

from functools import partial

from dwsep_zoo.models.spec import Architecture, Conv, Stage
from dwsep_zoo.nn import Layers, SeparableConv, XceptionBlock, make_divisible
from dwsep_zoo.nn.init import init_xception
from dwsep_zoo.nn.layers import ReLU


def xception(width_mult: float = 1.0, shortcuts: bool = True) -> Architecture:
    """Figure 5. Neither norm nor activation lies between depthwise and pointwise (Figure 10).

    ``shortcuts=False`` is the ablation of Figure 9.
    """

    def width(channels: int) -> int:
        return make_divisible(channels * width_mult)

    def flow(*channels: int, repeats: int = 1, stride: int = 1, first_act: bool = True) -> Stage:
        widths = tuple(width(c) for c in channels)
        block = partial(XceptionBlock, widths=widths, first_act=first_act, shortcut=shortcuts)
        return Stage(block, widths[-1], repeats, stride)

    def sep_conv(channels: int) -> Stage:
        return Stage(partial(SeparableConv, mid="none"), width(channels))

    return Architecture(
        stem=(
            Conv(width(32), stride=2, padded=False),  # 149, at 299
            Conv(width(64), padded=False),  # 147
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
        layers=Layers(ReLU),
        init=init_xception,
        resolution=299,
        drop_rate=0.5,
        top1=79.0,
    )


def xception41(width_mult: float = 1.0) -> Architecture:
    """DeepLab's aligned Xception, Chen et al. 2018, arXiv:1802.02611, Figure 4."""
    return _aligned(width_mult, ENTRY, middle=8)


def xception65(width_mult: float = 1.0) -> Architecture:
    """The aligned Xception with a middle flow of 16 blocks."""
    return _aligned(width_mult, ENTRY, middle=16)


def xception71(width_mult: float = 1.0) -> Architecture:
    """Xception-65 with two more blocks in the entry flow."""
    return _aligned(width_mult, LONG_ENTRY, middle=16)


ENTRY = ((128, 2), (256, 2), (728, 2))  # channels, stride
LONG_ENTRY = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))


def _aligned(width_mult: float, entry: tuple[tuple[int, int], ...], middle: int) -> Architecture:
    """Strided convolutions in place of the max-poolings, a norm after every depthwise."""

    def width(channels: int) -> int:
        return make_divisible(channels * width_mult)

    def flow(*channels: int, repeats: int = 1, stride: int = 1) -> Stage:
        widths = tuple(width(c) for c in channels)
        block = partial(XceptionBlock, widths=widths, pool=False, mid="norm")
        return Stage(block, widths[-1], repeats, stride)

    def sep_conv(channels: int) -> Stage:
        return Stage(partial(SeparableConv, mid="norm_act"), width(channels))

    return Architecture(
        stem=(Conv(width(32), stride=2), Conv(width(64))),
        stages=(
            *(flow(c, c, c, stride=s) for c, s in entry),
            flow(728, 728, 728, repeats=middle),
            flow(728, 1024, 1024, stride=2),
            sep_conv(1536),
            sep_conv(1536),
            sep_conv(2048),
        ),
        layers=Layers(ReLU, bn_eps=1e-3),
        init=init_xception,
        resolution=299,
        drop_rate=0.5,
    )
