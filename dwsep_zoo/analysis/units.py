"""The units of a network, by function, and the work of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import activation, batchnorm, normalization, pooling

from dwsep_zoo.analysis.count import LayerCount, conv_kind, count
from dwsep_zoo.models.convnet import ConvNet
from dwsep_zoo.nn import SqueezeExcite
from dwsep_zoo.nn.conv import MixedDepthwise
from dwsep_zoo.schema.roofline import (
    DEPTHWISE,
    NORM,
    NORM_ACT,
    OTHER,
    POOLING,
    SHORTCUT,
    SQUEEZE_EXCITE,
    Work,
)

# The private base classes catch every norm and pooling, which public names would list one by one.
_NORMS = (batchnorm._NormBase, normalization.LayerNorm, normalization.GroupNorm)
_POOLS = (
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
)


@dataclass(frozen=True)
class Unit:
    """A part of a network that is timed as a whole.

    ``shortcut`` is the addition at the end of a block. Its module is the block, but its time begins
    where the previous unit ends.
    """

    name: str
    kind: str
    module: nn.Module


Start = Callable[[Unit], None]
Stop = Callable[[Unit, tuple[Any, ...], Any], None]


def units(model: nn.Module) -> Iterator[Unit]:
    """The units of a network, recognised by the types and names of its modules.

    Gates and mixed depthwise convolutions are units; all others are modules without children.
    Modules that do nothing at inference (dropout, identity, flatten) belong to none.
    """
    inside = ""  # of a unit that has children
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        part = name.split(".")[0] if isinstance(model, ConvNet) else ""
        kind = _function(module, name, part)
        if isinstance(module, SqueezeExcite | MixedDepthwise):
            inside = f"{name}."
        elif kind != SHORTCUT and any(module.children()):
            continue
        if kind:
            yield Unit(name, kind, module)


def _function(module: nn.Module, name: str, part: str) -> str | None:
    match module:
        case SqueezeExcite():
            return SQUEEZE_EXCITE
        case MixedDepthwise():
            return DEPTHWISE
        case nn.Linear():
            return "head"
        case nn.Conv2d() if part in ("stem", "head"):
            return part
        case nn.Conv2d() if name.endswith("expand.conv"):
            return "expansion"
        case nn.Conv2d():
            return conv_kind(module)
    if isinstance(module, _POOLS):
        return POOLING
    if isinstance(module, _NORMS) or type(module).__module__ == activation.__name__:
        return NORM_ACT
    if getattr(module, "has_shortcut", False) or getattr(module, "shortcut", None) is not None:
        return SHORTCUT
    return None


def operator(module: nn.Module) -> str:
    """The operator of a module without children: a kind of convolution, ``norm`` or ``other``."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return conv_kind(module)
    return NORM if isinstance(module, _NORMS) else OTHER


@contextmanager
def watched(parts: Iterable[Unit], start: Start, stop: Stop) -> Iterator[None]:
    """Call ``start`` before and ``stop`` after each unit; a shortcut has no ``start``."""
    with ExitStack() as hooks:
        for unit in parts:
            if unit.kind != SHORTCUT:
                before = unit.module.register_forward_pre_hook(lambda *_, u=unit: start(u))
                hooks.enter_context(before)
            after = unit.module.register_forward_hook(lambda _, i, out, u=unit: stop(u, i, out))
            hooks.enter_context(after)
        yield


def works(model: nn.Module, input_size: Sequence[int]) -> list[Work]:
    """The work of each unit for one image of ``input_size`` (C, H, W), in the order of execution.

    No arithmetic is done, as in :func:`dwsep_zoo.count`, which runs here.
    """
    calls: list[tuple[Unit, int]] = []

    def stop(unit: Unit, inputs: tuple[Any, ...], out: Any) -> None:
        # A shortcut adds two tensors of the output's shape. The batch is empty here.
        read: list[Tensor] = [out, out] if unit.kind == SHORTCUT else [inputs[0]]
        calls.append((unit, sum(math.prod(tensor.shape[1:]) for tensor in (*read, out))))

    with watched(units(model), lambda _: None, stop):
        layers = list(count(model, input_size).layers)
    return [_work(unit, activations, layers) for unit, activations in calls]


def _work(unit: Unit, activations: int, layers: list[LayerCount]) -> Work:
    """The work of a unit, whose layers are removed from the front of ``layers``."""
    macs = macs_inside = 0
    own = [] if unit.kind == SHORTCUT else list(unit.module.modules())
    while layers and own and (layers[0].name + ".").startswith(unit.name + "."):
        layer = layers.pop(0)
        macs, macs_inside = macs + layer.macs, macs_inside + layer.macs_inside
    leaves = [module for module in own if not list(module.children())]
    # A unit with children has an operator of its own: the gate's product, the mixture's cat.
    of_itself = () if unit.module in leaves else (OTHER,)
    return Work(
        name=unit.name,
        kind=unit.kind,
        macs=macs,
        macs_inside=macs_inside,
        activations=activations,
        weights=sum(
            tensor.numel()
            for module in leaves
            for tensor in (*module.parameters(), *module.buffers())
            if tensor.is_floating_point()  # a norm's number of batches is not read
        ),
        calls=(*map(operator, leaves), *of_itself),
    )
