"""The conv types: the operators that ``conv=`` swaps.

The unit is a k x k convolution from M to N channels with stride s. The papers of this zoo factorise
it into a depthwise k x k and a pointwise 1 x 1. A *conv type* is one operator for the whole unit.
Networks are built with an operator and never edited afterwards, so the swap means the same in every
architecture: stem, expansion, head, classifier, shortcuts and gates stay the same.

To add a conv type, write one function here, add it to ``CONVS`` and put one YAML file into
``configs/conv``. The function's parameters are the block's contract (see :class:`ConvOp`) and then
its own options, which become ``conv.<option>=`` on the command line.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.nn.layers import Layers, Mid

LARGEST_KERNEL = 63

Gate = Callable[[int], nn.Module]
"""Factory of a channel gate (squeeze-and-excite) for a number of channels."""


def standard(
    in_chans: int,
    out_chans: int,
    kernel_size: int,
    stride: int,
    layers: Layers,
    gate: Gate | None,
) -> nn.Module:
    """One dense k x k convolution.

    Weights K^2 M N; multiply-adds K^2 M N H' W'. There are no factors, so the block's mid norm and
    activation disappear and its gate moves to the input, which has the same width.
    For MobileNetV1 this is the "Conv MobileNet" of its paper's Table 4.
    """
    return _named(
        gate=gate and gate(in_chans),
        dense=layers.conv(in_chans, out_chans, kernel_size, stride),
    )


def depthwise_separable(
    in_chans: int,
    out_chans: int,
    kernel_size: int,
    stride: int,
    layers: Layers,
    gate: Gate | None,
    mid: Mid,
    depth_multiplier: int = 1,
) -> nn.Module:
    """k x k depthwise, which filters, then 1 x 1 pointwise, which mixes the channels.

    Weights D (K^2 M + M N), a fraction D (1/N + 1/K^2) of the standard convolution. The ratio of
    multiply-adds is the same at any stride. Howard et al. 2017, arXiv:1704.04861, section 3.1;
    Chollet 2017, arXiv:1610.02357 (``mid="none"``).
    """
    mid_chans = in_chans * depth_multiplier
    return _named(
        depthwise=layers.conv(in_chans, mid_chans, kernel_size, stride, groups=in_chans),
        mid=layers.mid(mid, mid_chans),
        gate=gate and gate(mid_chans),
        pointwise=layers.conv(mid_chans, out_chans),
    )


def grouped(
    in_chans: int,
    out_chans: int,
    kernel_size: int,
    stride: int,
    layers: Layers,
    gate: Gate | None,
    mid: Mid,
    group_size: int = 8,
) -> nn.Module:
    """k x k convolution within groups of G channels, then 1 x 1 pointwise.

    Weights K^2 G M + M N. It lies between the depthwise separable convolution (G = 1) and a dense
    k x k followed by a 1 x 1 (G = M): Chollet 2017, arXiv:1610.02357, section 1.2.
    """
    if in_chans % group_size:
        raise UserError(
            f"conv=grouped: group_size {group_size} does not divide {in_chans} input channels"
        )
    return _named(
        grouped=layers.conv(in_chans, in_chans, kernel_size, stride, groups=in_chans // group_size),
        mid=layers.mid(mid, in_chans),
        gate=gate and gate(in_chans),
        pointwise=layers.conv(in_chans, out_chans),
    )


def blueprint(
    in_chans: int,
    out_chans: int,
    kernel_size: int,
    stride: int,
    layers: Layers,
    gate: Gate | None,
    mid: Mid = "none",
    rank: float = 0,
) -> nn.Module:
    """1 x 1 pointwise, then k x k depthwise: every filter is a blueprint times a vector.

    BSConv-U: weights M N + K^2 N. The depthwise has the stride, so the pointwise costs M N H W at
    the input's resolution. With a ``rank`` p in (0, 1] it is BSConv-S: the pointwise is
    M -> M' -> N with M' = min(M, max(4, ceil(p M))) and weights M M' + M' N + K^2 N; the paper uses
    p = 1/4 and 1/6. The paper's regulariser belongs to a recipe and is not implemented.
    Haase and Amthor 2020, arXiv:2003.13549, sections 3.2 and 3.3. There is no activation between
    the factors; a norm is optional (``mid="norm"``).
    """
    reduced = min(in_chans, max(4, math.ceil(rank * in_chans)))
    return _named(
        gate=gate and gate(in_chans),
        reduce=layers.conv(in_chans, reduced) if rank else None,
        pointwise=layers.conv(reduced if rank else in_chans, out_chans),
        mid=layers.mid(mid, out_chans),
        depthwise=layers.conv(out_chans, out_chans, kernel_size, stride, groups=out_chans),
    )


def spatially_separable(
    in_chans: int,
    out_chans: int,
    kernel_size: int,
    stride: int,
    layers: Layers,
    gate: Gate | None,
    mid: Mid,
) -> nn.Module:
    """k x 1 to N channels, then 1 x k, both dense, as in Inception's factorisation.

    Weights K M N + K N^2, which is 2 / K of the standard convolution for M = N. Multiply-adds
    K M N H' W + K N^2 H' W', as the first factor has only the vertical stride.
    Szegedy et al. 2016, arXiv:1512.00567, section 3.2.
    """
    return _named(
        gate=gate and gate(in_chans),
        vertical=layers.conv(in_chans, out_chans, (kernel_size, 1), (stride, 1)),
        mid=layers.mid(mid, out_chans),
        horizontal=layers.conv(out_chans, out_chans, (1, kernel_size), (1, stride)),
    )


def mixed(
    in_chans: int,
    out_chans: int,
    kernel_size: int,
    stride: int,
    layers: Layers,
    gate: Gate | None,
    mid: Mid,
    kernel_sizes: Sequence[int] = (3, 5, 7),
) -> nn.Module:
    """Depthwise kernels of several sizes, each on its share of the channels, then pointwise.

    Weights sum_i K_i^2 M_i + M N with equal shares M_i (the first takes the remainder). The block's
    own kernel size is not used. Tan and Le 2019, arXiv:1907.09595, section 3.
    """
    return _named(
        depthwise=MixedDepthwise(in_chans, kernel_sizes, stride, layers),
        mid=layers.mid(mid, in_chans),
        gate=gate and gate(in_chans),
        pointwise=layers.conv(in_chans, out_chans),
    )


class MixedDepthwise(nn.ModuleList):
    """MixConv: equal groups of channels, each with its own size of depthwise kernel."""

    def __init__(self, chans: int, kernel_sizes: Sequence[int], stride: int, layers: Layers):
        share = chans // len(kernel_sizes)
        self.shares = [chans - share * (len(kernel_sizes) - 1)] + [share] * (len(kernel_sizes) - 1)
        if share == 0:
            raise UserError(
                f"conv=mixed: {len(kernel_sizes)} kernel_sizes cannot share {chans} channels"
            )
        super().__init__(
            layers.conv(c, c, k, stride, groups=c)
            for c, k in zip(self.shares, kernel_sizes, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.shares, dim=1)
        # Index, because torch.fx cannot trace iteration.
        return torch.cat([conv(parts[i]) for i, conv in enumerate(self)], dim=1)


CONVS: dict[str, Callable[..., nn.Module]] = {
    op.__name__: op
    for op in (depthwise_separable, standard, grouped, blueprint, spatially_separable, mixed)
}

_CONTRACT = {"in_chans", "out_chans", "kernel_size", "stride", "layers", "gate"}


@dataclass(frozen=True)
class ConvOp:
    """A conv type with its options: the operator that is injected into every block.

    Blocks call it with their widths, kernel, stride and layers, their gate (or none), and their
    paper's layers between the two factors (``mid``). Operators whose ``mid`` has no default use
    these, unless the option ``mid`` overrides them.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"conv.{k}={v}" for k, v in self.options.items())])

    def __call__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int,
        stride: int,
        *,
        layers: Layers,
        mid: Mid,
        gate: Gate | None = None,
    ) -> nn.Module:
        options = dict(self.options)
        if _options(self.name).get("mid") is inspect.Parameter.empty:
            options.setdefault("mid", mid)
        return CONVS[self.name](
            in_chans, out_chans, kernel_size, stride, layers=layers, gate=gate, **options
        )


def create_conv(conv: str | Mapping[str, Any] | ConvOp, **options: Any) -> ConvOp:
    """Make a conv type from its name, or from a mapping with ``name`` and options.

    An option that is ``None`` keeps its default.

    Raises:
        UserError: for an unknown name, option or value.
    """
    if isinstance(conv, ConvOp):
        conv = {"name": conv.name, **conv.options}
    if isinstance(conv, Mapping):
        options = {**conv, **options}
        name = options.pop("name", "depthwise_separable")
    else:
        name = conv
    choose(name, CONVS, "conv")
    options = {key: value for key, value in options.items() if value is not None}
    for key, value in options.items():
        if not _options(name):
            raise UserError(f"conv={name} has no options; got {key}={value!r}")
        choose(key, _options(name), f"option of conv={name}")
        options[key] = _OPTIONS[key](key, value)
    # Drop defaults, so that equivalent operators are equal.
    return ConvOp(name, {k: v for k, v in options.items() if v != _options(name)[k]})


def list_convs() -> list[str]:
    """Return the names of the conv types."""
    return list(CONVS)


def _options(name: str) -> dict[str, Any]:
    """Return an operator's own options with their defaults."""
    parameters = inspect.signature(CONVS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in _CONTRACT}


def _mid(key: str, value: Any) -> str:
    return choose(value, get_args(Mid), f"conv.{key}")


def _whole(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"conv.{key} must be a whole number from 1 up; got {value!r}")
    return value


def _fraction(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"conv.{key} must be in (0, 1], or 0 for none; got {value!r}")
    return value


def _odd_sizes(key: str, value: Any) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if not sizes or not all(
        isinstance(k, int) and k % 2 and 0 < k <= LARGEST_KERNEL for k in sizes
    ):
        raise UserError(
            f"conv.{key} must be a list of odd sizes up to {LARGEST_KERNEL}, [3,5,7]; got {value!r}"
        )
    return sizes


_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "mid": _mid,
    "depth_multiplier": _whole,
    "group_size": _whole,
    "rank": _fraction,
    "kernel_sizes": _odd_sizes,
}


def _named(**modules: nn.Module | None) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, module in modules.items():
        if module is not None:
            sequence.add_module(name, module)
    return sequence
