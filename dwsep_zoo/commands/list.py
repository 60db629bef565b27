"""``dwsep list``: the models, their size and arithmetic, and where weights are published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import RenderableType

import dwsep_zoo
from dwsep_zoo.commands.arguments import UNIT, Arguments, Conv, NetworkArguments, read
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import atomic_write, cache_folder
from dwsep_zoo.schema.numbers import Width
from dwsep_zoo.schema.parse import parse
from dwsep_zoo.terminal import stdout_console, table


class ListArguments(Arguments):
    """List the models that match shell patterns; of a single one, its published weights too."""

    conv: Conv = Field("depthwise_separable", description="operator of the factorised convolutions")
    width_mult: Width = Field(1.0, description="factor on every width")


def run(arguments: list[str]) -> None:
    patterns, options = read("list", arguments, ListArguments, words="[PATTERN ...]")
    console = stdout_console()
    for part in list_models(patterns or ["*"], options):
        console.print(part)


def list_models(patterns: list[str], options: ListArguments) -> Iterator[RenderableType]:
    """The models that match, each at its paper's resolution.

    The papers' accuracies and all published weights belong to the separable networks: with another
    conv type there are none.
    """
    rows = _rows(options)
    names = {name: None for pattern in patterns for name in rows if fnmatch(name, pattern)}
    if not names:
        raise UserError(f"no model matches {' '.join(patterns)!r}; there are {', '.join(rows)}")
    headings = ["model", "pixels", "parameters", "MACs (M)"]
    published = [weights for name in names for weights in rows[name].get("weights", ())]
    has_weights = "weights" in rows[next(iter(names))]
    yield table(
        f"conv={options.conv}, width {options.width_mult:g}, 1000 classes",
        [*headings, "top-1", "weights"] if has_weights else headings,
        ((name, *rows[name]["cells"]) for name in names),
        words=("model", "weights"),
        caption=f"{UNIT}; top-1: the paper's, at width 1" if has_weights else UNIT,
    )
    if len(names) == 1:
        yield from (f"pretrained={weights}" for weights in published)
    elif has_weights:
        yield "the weights of one model: dwsep list mobilenet_v2"


def _rows(options: ListArguments) -> dict[str, Any]:
    """The cells of every model, kept in the user's cache as long as the sources are the same.

    Counting all models takes as long as importing PyTorch, and a kept table needs neither.
    """
    package = Path(dwsep_zoo.__file__).parent
    sources = sorted(path for kind in ("*.py", "config.json") for path in package.rglob(kind))
    hashed = hashlib.sha256(repr(options).encode())
    for path in sources:
        hashed.update(path.read_bytes())
    folder = cache_folder()
    kept = folder / f"list-{hashed.hexdigest()[:16]}.json" if folder else None
    try:
        return dict(json.loads(kept.read_text())) if kept else _count(options)
    except (OSError, ValueError):  # there is none yet, or it is damaged
        rows = _count(options)
    if kept:
        atomic_write(kept, json.dumps(rows))
    return rows


def _count(options: ListArguments) -> dict[str, Any]:
    from dwsep_zoo.models import create_architecture, list_models
    from dwsep_zoo.nn import create_conv
    from dwsep_zoo.weights.catalog import available, origins

    published = create_conv(options.conv) == create_conv("depthwise_separable")
    shape = parse(NetworkArguments, {"width_mult": options.width_mult})
    rows: dict[str, Any] = {}
    for name in list_models():
        _, cost = shape.count(name, options.conv)
        cells = [str(cost.input_size[-1]), f"{cost.params:,}", f"{cost.macs / 1e6:,.2f}"]
        rows[name] = {"cells": cells}
        if published:
            top1 = create_architecture(name).top1
            cells += [f"{top1:.1f}" if top1 else "", " ".join(origins(name))]
            rows[name]["weights"] = available(name)
    return rows
