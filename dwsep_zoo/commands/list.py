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
from rich.table import Table

import dwsep_zoo
from dwsep_zoo.commands.arguments import Arguments, Conv, NetworkArguments, read
from dwsep_zoo.commands.network import UNIT, counted_network
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import atomic_write, cache_folder
from dwsep_zoo.schema.parse import parse
from dwsep_zoo.schema.settings import Width
from dwsep_zoo.terminal import stdout_console

SOURCES = ("models/*.py", "nn/*.py", "weights/catalog.py", "analysis/count.py", "commands/*.py")


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
    names = [name for pattern in patterns for name in rows if fnmatch(name, pattern)]
    if not names:
        raise UserError(f"no model matches {' '.join(patterns)!r}; there are {', '.join(rows)}")
    published = "weights" in rows[names[0]]
    table = Table(
        title=f"conv={options.conv}, width {options.width_mult:g}, 1000 classes",
        caption=f"{UNIT}; top-1: the paper's, at width 1" if published else UNIT,
    )
    table.add_column("model", no_wrap=True)
    for heading in ("pixels", "parameters", "MACs (M)", *(["top-1"] if published else [])):
        table.add_column(heading, justify="right")
    if published:
        table.add_column("weights")
    for name in dict.fromkeys(names):
        table.add_row(name, *rows[name]["cells"])
    yield table
    if published and len(set(names)) > 1:
        yield "the weights of one model: dwsep list mobilenet_v2"
    elif published:
        yield from (f"pretrained={weights}" for weights in rows[names[0]]["weights"])


def _rows(options: ListArguments) -> dict[str, Any]:
    """The cells of every model, kept in the user's cache as long as the sources are the same.

    Counting all models takes as long as importing PyTorch, which a kept table needs neither.
    """
    package = Path(dwsep_zoo.__file__).parent
    sources = [path.read_bytes() for part in SOURCES for path in sorted(package.glob(part))]
    key = hashlib.sha256(repr((options, sources)).encode()).hexdigest()[:16]
    folder = cache_folder()
    kept = folder / f"list-{key}.json" if folder else None
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
        _, cost = counted_network(name, options.conv, shape)
        cells = [str(cost.input_size[-1]), f"{cost.params:,}", f"{cost.macs / 1e6:,.2f}"]
        rows[name] = {"cells": cells}
        if published:
            top1 = create_architecture(name).top1
            cells += [f"{top1:.1f}" if top1 else "", " ".join(origins(name))]
            rows[name]["weights"] = available(name)
    return rows
