"""State dicts from one layout into another, complete on both sides or not at all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dwsep_zoo.errors import UserError
from dwsep_zoo.models import ConvNet
from dwsep_zoo.weights.layouts import Layout

State = dict[str, Tensor]


def from_layout(state: Mapping[str, Tensor], layout: Layout, model: ConvNet, what: str) -> State:
    """A foreign state dict under our names, with our shapes.

    Args:
        state: theirs.
        layout: the names of its layers.
        model: a network of ours to load it into; on the meta device, if you like.
        what: name of ``state`` in messages.

    Raises:
        UserError: naming the first tensor that is missing, left over, or of another shape or type.
    """
    names = _names(layout, model, list(state), what)
    wanted = model.state_dict()
    result: State = {}
    for ours, tensor in wanted.items():
        theirs = names[ours]
        if theirs not in state:
            if ours.endswith("num_batches_tracked"):  # TensorFlow's have none; only a counter
                result[ours] = torch.zeros((), dtype=torch.long)
                continue
            raise UserError(f"{what}: {theirs} is missing, which {_this(model)} needs for {ours}")
        result[ours] = _reshaped(state[theirs], tensor, theirs, what, model)
    left = [name for name in state if name not in set(names.values())]
    if left:
        raise UserError(f"{what}: {left[0]} has no place in {_this(model)}")
    return result


def export_state(model: ConvNet, layout: Layout, template: Mapping[str, Tensor]) -> State:
    """Rename our weights to another layout.

    Args:
        model: a network of ours.
        layout: the names of the template's layers.
        template: the foreign network's own state dict, for its names and shapes.
    """
    names = _names(layout, model, list(template), "the template")
    state = model.state_dict()
    result = {
        theirs: _reshaped(state[ours], template[theirs], ours, "this network", model)
        for ours, theirs in names.items()
        if theirs in template
    }
    missing = [name for name in template if name not in result]
    if missing:
        raise UserError(f"{_this(model)} has nothing to put into {missing[0]}")
    return {name: result[name] for name in template}


def _names(layout: Layout, model: ConvNet, theirs: list[str], what: str) -> dict[str, str]:
    """Our tensor names -> theirs."""
    try:
        modules = dict(layout(model, theirs))
    except ValueError as error:  # rows do not pair up
        raise UserError(
            f"{what}: is of another architecture or depth than {_this(model)}"
        ) from error
    names = {}
    for ours in model.state_dict():
        module, leaf = ours.rsplit(".", 1)
        if module not in modules:
            raise UserError(f"{what}: its layout has nothing for {ours} of {_this(model)}")
        names[ours] = f"{modules[module]}.{leaf}"
    return names


def _reshaped(tensor: Tensor, like: Tensor, name: str, what: str, model: ConvNet) -> Tensor:
    """A 1 x 1 convolution on pooled features is a linear layer, and back; nothing else changes."""
    if tensor.dtype != like.dtype:
        raise UserError(
            f"{what}: {name} is {_short(tensor.dtype)}; {_this(model)} has {_short(like.dtype)}"
        )
    squeezed = tuple(n for n in tensor.shape[2:] if n != 1)
    if tensor.shape[:2] == like.shape[:2] and tensor.numel() == like.numel() and not squeezed:
        return tensor.reshape(like.shape)
    if tensor.shape != like.shape:
        raise UserError(
            f"{what}: {name} has shape {_shape(tensor)}; {_this(model)} has {_shape(like)}"
        )
    return tensor


def _this(model: ConvNet) -> str:
    args = getattr(model, "build_args", None) or {}
    return f"{args.get('name', 'this network')} (width {args.get('width_mult', 1.0):g})"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "scalar"
