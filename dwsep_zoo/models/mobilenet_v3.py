"""MobileNetV3. Howard et al. 2019, arXiv:1905.02244."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import nn

from dwsep_zoo.errors import choose
from dwsep_zoo.models.spec import Architecture, Conv, Stage
from dwsep_zoo.nn import InvertedResidual, Layers, SqueezeExcite, make_divisible
from dwsep_zoo.nn.conv import Gate
from dwsep_zoo.nn.init import init_mobilenet
from dwsep_zoo.nn.layers import Act, HardSwish, ReLU

WidthRule = Literal["google", "torchvision"]

RE = ReLU
HS = None  # the architecture's own activation

LARGE = (
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

SMALL = (
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


def mobilenet_v3_large(
    width_mult: float = 1.0, width_rule: WidthRule = "google", reduced_tail: bool = False
) -> Architecture:
    """Table 1."""
    return _mobilenet_v3(LARGE, 1280, width_mult, width_rule, reduced_tail, top1=75.2)


def mobilenet_v3_small(
    width_mult: float = 1.0,
    width_rule: WidthRule = "google",
    reduced_tail: bool = False,
    hidden: int = 1024,
) -> Architecture:
    """Table 2. ``hidden`` is 1024 in every released checkpoint and printed as 1280."""
    return _mobilenet_v3(SMALL, hidden, width_mult, width_rule, reduced_tail, top1=67.4)


def mobilenet_v3_large_minimal(width_mult: float = 1.0) -> Architecture:
    """TF-Slim's "minimalistic" variant: 3 x 3 kernels, ReLU, no squeeze-and-excite."""
    return _minimal(LARGE, 1280, width_mult, top1=72.3)


def mobilenet_v3_small_minimal(width_mult: float = 1.0) -> Architecture:
    """TF-Slim's "minimalistic" variant: 3 x 3 kernels, ReLU, no squeeze-and-excite."""
    return _minimal(SMALL, 1024, width_mult, top1=61.9)


Rows = tuple[tuple[int, int, int, bool, Act | None, int], ...]


def _mobilenet_v3(
    rows: Rows,
    hidden: int,
    width_mult: float,
    width_rule: WidthRule,
    reduced_tail: bool,
    top1: float,
    act: Act = HardSwish,
) -> Architecture:
    """The width rules agree at 1 and differ elsewhere.

    ``google`` (TF-Slim, Keras, timm): expansions follow the width that they expand, stem and hidden
    layer are not narrowed. ``torchvision``: every number of the table is multiplied. The reduced
    tail is torchvision's too: half the channels from the last stride on.
    """
    choose(width_rule, ("google", "torchvision"), "model.width_rule")
    google = width_rule == "google"
    widening = max(1.0, width_mult) if google else width_mult
    if reduced_tail:
        rows, hidden = _reduce_tail(rows), hidden // 2

    def width(channels: int) -> int:
        return make_divisible(channels * width_mult)

    stages, last = [], 16
    for k, exp, out, se, row_act, stride in rows:
        block = partial(
            InvertedResidual,
            kernel_size=k,
            expand_ratio=exp / last if google else width(exp) / width(last),
            squeeze_excite=_squeeze_excite if se else None,
            act=row_act,
        )
        stages.append(Stage(block, width(out), stride=stride))
        last = out
    return Architecture(
        stem=(Conv(make_divisible(16 * widening), stride=2),),
        stages=tuple(stages),
        head=Conv(make_divisible(6 * width(last)), kernel_size=1),
        hidden=make_divisible(hidden * widening),
        layers=Layers(act),
        init=init_mobilenet,
        resolution=224,
        drop_rate=0.2,
        top1=top1,
    )


def _minimal(rows: Rows, hidden: int, width_mult: float, top1: float) -> Architecture:
    rows = tuple((3, exp, out, False, RE, s) for _, exp, out, _, _, s in rows)
    return _mobilenet_v3(rows, hidden, width_mult, "google", False, top1, act=RE)


def _reduce_tail(rows: Rows) -> Rows:
    first = max(i for i, row in enumerate(rows) if row[-1] == 2)
    return tuple(
        (k, exp if i <= first else exp // 2, out if i < first else out // 2, se, act, s)
        for i, (k, exp, out, se, act, s) in enumerate(rows)
    )


def _squeeze_excite(in_chans: int, expanded: int) -> Gate:
    """Section 5.3: a quarter of the expansion, with a hard sigmoid."""
    return partial(
        SqueezeExcite, squeeze_chans=make_divisible(expanded / 4), act=RE, gate=nn.Hardsigmoid
    )
