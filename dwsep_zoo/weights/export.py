"""Export of weights for timm's and torchvision's networks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.files import part_of, write_part
from dwsep_zoo.models import ConvNet, create_architecture
from dwsep_zoo.weights import catalog, layouts
from dwsep_zoo.weights.catalog import Published
from dwsep_zoo.weights.convert import export_state
from dwsep_zoo.weights.loading import load

TARGETS = {"timm": catalog.TIMM, "torchvision": catalog.TORCHVISION}


def export_weights(path: str | Path, to: str, out: str | Path) -> str:
    """Write the weights of a run so that timm or torchvision loads them.

    Args:
        path: the folder of a run, or a checkpoint or folder written here.
        to: ``timm`` or ``torchvision``.
        out: a new ``.safetensors`` or ``.pth`` file.

    Returns:
        The name of their network that gives the same logits.

    Raises:
        UserError: if they have no network that computes the same.
    """
    out = Path(out)
    choose(out.suffix, (".safetensors", ".pth"), "kind of file to write")
    choose(to, TARGETS, "target")
    if out.exists():
        raise UserError(f"{out}: exists already")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder")
    model = load(path)
    name = counterpart(model, to)
    template = _template(name, to, model)
    layout = layouts.recognise(template)
    assert layout is not None
    state = {
        key: value.contiguous() for key, value in export_state(model, layout, template).items()
    }
    try:
        if out.suffix == ".pth":
            write_part(out, partial(torch.save, state))
        else:
            from safetensors.torch import save

            content = save(state, metadata={"format": "pt"})
            write_part(out, lambda file: file.write(content))
        part_of(out).replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    return name


def counterpart(model: ConvNet, to: str) -> str:
    """The name of the network of timm or torchvision that computes what this one does.

    Raises:
        UserError: naming all that differs.
    """
    args = model.build_args
    models = {n: entry for n, entry in TARGETS[to].items() if entry.model == args["name"]}
    same = {n: entry for n, entry in models.items() if entry.width_mult == args["width_mult"]}
    differs = []
    if args["conv"] != {"name": "depthwise_separable"}:
        differs.append(f"{to} has no {args['name']} with conv={args['conv']['name']}")
    if not same:
        widths = ", ".join(f"{w:g}" for w in sorted({e.width_mult or 1.0 for e in models.values()}))
        there = f"there are {widths}" if widths else "there is no such model"
        differs.append(f"{to} has no {args['name']} of width {args['width_mult']:g}: {there}")
    if args["output_stride"] != 32:
        differs.append(
            f"{to}'s networks have an output stride of 32; this one has {args['output_stride']}, "
            "with which the same weights compute otherwise. Images from 64 pixels on have 32 by "
            "themselves, smaller ones with model.output_stride=32"
        )
    if differs:
        raise UserError("; ".join(differs))
    ours = {key: value for key, value in args.items() if key not in _NOT_OF_THE_ROWS}
    for name, entry in same.items():
        if _layers(args, ours) == _layers(args, entry.options):
            return name
    needed = " or ".join(
        f"{name} ({' '.join(f'{k}={v}' for k, v in _telling(entry).items()) or 'no options'})"
        for name, entry in same.items()
    )
    raise UserError(f"this network computes otherwise than {to}'s; there are {needed}")


_NOT_OF_THE_ROWS = {
    "name",
    "conv",
    "num_classes",
    "in_chans",
    "width_mult",
    "output_stride",
    "drop_rate",
    "drop_path_rate",
}


def _telling(entry: Published) -> dict[str, object]:
    return {k: v for k, v in entry.options.items() if k not in ("bn_momentum", "width_rule")}


def _layers(args: dict[str, object], options: dict[str, object]) -> object:
    """The layers as far as a forward pass in evaluation depends on them."""
    arch = create_architecture(str(args["name"]), width_mult=args["width_mult"], **options)  # type: ignore[arg-type]
    return replace(arch.layers, bn_momentum=0.1)


def _template(name: str, to: str, model: ConvNet) -> dict[str, Tensor]:
    classes, chans = model.build_args["num_classes"], model.build_args["in_chans"]
    with torch.device("meta"):
        if to == "timm":
            import timm

            return dict(timm.create_model(name, num_classes=classes, in_chans=chans).state_dict())
        from torchvision.models import get_model

        if chans != 3:
            raise UserError(f"torchvision's networks take 3 channels; this one takes {chans}")
        return dict(get_model(name, num_classes=classes).state_dict())
