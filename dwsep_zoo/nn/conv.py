"""The convolution types: what ``conv=`` swaps.

The unit is a k x k convolution from M to N channels with stride s, which the papers of this zoo
factorise into a depthwise k x k and a pointwise 1 x 1. A *conv type* is one operator for that whole
unit. Networks are built around an operator and never edited afterwards, so the swap means the same
thing in every architecture: stem, expansion, head, classifier, shortcuts and gates stay the same.

To add a conv type, write one function here, add it to ``CONVS`` and put one YAML file into
``configs/conv``. Its parameters are the block's contract (see :class:`ConvOp`) followed by its own
options, which become ``conv.<option>=`` on the command line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import nn

from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.nn.layers import Layers, Mid

Gate = Callable[[int], nn.Module]
"""Makes a channel gate (squeeze-and-excite) for a number of channels."""


def standard(
    in_chans: int,
    out_chans: int,
    kernel_size: int,
    stride: int,
    layers: Layers,
    gate: Gate | None,
) -> nn.Module:
    """One dense k x k convolution.

    Weights K^2 M N. There is nothing between factors, so the block's mid norm and activation
    disappear and its gate sits on the input, which has the width it has everywhere else.
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

    Weights D (K^2 M + M N), hence D (1/N + 1/K^2) of the standard convolution, and the same ratio
    of multiply-adds at any stride. Howard et al. 2017, arXiv:1704.04861, section 3.1;
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

    Weights K^2 G M + M N. The spectrum between the depthwise separable convolution (G = 1) and a
    dense k x k followed by a 1 x 1 (G = M): Chollet 2017, arXiv:1610.02357, section 1.2.
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


CONVS: dict[str, Callable[..., nn.Module]] = {
    op.__name__: op for op in (depthwise_separable, standard, grouped)
}

_CONTRACT = {"in_chans", "out_chans", "kernel_size", "stride", "layers", "gate"}


@dataclass(frozen=True)
class ConvOp:
    """A conv type with its options: the operator that is injected into every block.

    Blocks call it with their widths, kernel, stride and layers, with the gate they want (or none)
    and with what their paper puts between the two factors (``mid``); an option of the same name
    overrides the latter.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

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
        if "mid" in _options(self.name):
            options.setdefault("mid", mid)
        return CONVS[self.name](
            in_chans, out_chans, kernel_size, stride, layers=layers, gate=gate, **options
        )


def create_conv(conv: str | Mapping[str, Any] | ConvOp, **options: Any) -> ConvOp:
    """Make a conv type from its name, or from a mapping with ``name`` and options.

    An option that is ``None`` is left at its default.

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
        if key == "mid":
            choose(value, get_args(Mid), "conv.mid")
        elif not isinstance(value, int) or value < 1:
            raise UserError(f"conv.{key} must be a whole number from 1 up; got {value!r}")
    return ConvOp(name, options)


def list_convs() -> list[str]:
    """The names of the conv types."""
    return list(CONVS)


def _options(name: str) -> list[str]:
    return [key for key in inspect.signature(CONVS[name]).parameters if key not in _CONTRACT]


def _named(**modules: nn.Module | None) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, module in modules.items():
        if module is not None:
            sequence.add_module(name, module)
    return sequence
