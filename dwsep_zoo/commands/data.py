"""``dwsep data``: a look at a data set before a network is trained on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, read
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.files import atomic_write, check_writable
from dwsep_zoo.schema.texts import Place

if TYPE_CHECKING:
    from dwsep_zoo.data import ImageData
    from dwsep_zoo.data.check import Check
    from dwsep_zoo.schema.settings import Settings

ACTIONS = ("check", "show", "pack")
SHOWN = 5
"""Lines of each finding on the terminal; --json has all."""
JSON = "--json"
USAGE = """\
usage: dwsep data check ROOT | data=NAME [--json]
       dwsep data show data=NAME [recipe=NAME] [out=sheet.png]
       dwsep data pack ROOT | data=NAME to=FOLDER [shard_mb=256]
       dwsep data pack ROOT | data=NAME format=map
"""


class CheckArguments(Arguments):
    """Read every picture of a folder or of data=NAME; list unreadable, repeated and odd ones."""


class ShowArguments(Arguments):
    """Draw some training pictures as the network gets them in its first epochs.

    data=NAME, data.KEY=VALUE, recipe=NAME, experiment=NAME and seed=N choose as in training.
    """

    out: Place = Field("sheet.png", description="the picture")


class PackArguments(Arguments):
    """Pack the pictures of a folder or of data=NAME into large files for training."""

    to: Place | None = Field(None, description="new folder of the shards")
    format: Literal["shards", "map"] = Field(
        "shards", description="map: the decoded pictures that data.cache=true trains from"
    )
    shard_mb: Annotated[int, Field(ge=1, le=100_000)] = Field(
        256, description="size of a shard in MB"
    )


def run(arguments: list[str]) -> None:
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        sys.exit(0)
    if not arguments:
        raise UserError("data: check, show or pack, for example: dwsep data check pictures/")
    action, *rest = arguments
    choose(action, ACTIONS, "action of dwsep data")
    {"check": _check, "show": _show, "pack": _pack}[action](rest)


def _check(arguments: list[str]) -> None:
    chosen, rest = _split([one for one in arguments if one != JSON], ("data", "paths"))
    roots, _ = read("data check", rest, CheckArguments, words="ROOT")
    data = _data("check", roots, chosen)
    from dwsep_zoo.data.check import check_data

    found = check_data(data)
    if JSON in arguments:
        print(json.dumps(found.plain(), indent=2))
    else:
        print(*_lines(found), sep="\n")


def _show(arguments: list[str]) -> None:
    chosen, rest = _split(arguments, ("data", "recipe", "experiment", "seed", "paths"))
    _, options = read("data show", rest, ShowArguments)
    settings, out = _settings(chosen), Path(options.out)
    check_writable("out", out.parent)
    if out.is_dir():
        raise UserError(f"out={out} is a folder; it must be the picture's file")
    from dwsep_zoo.training.pictures import training_sheet

    sheet = training_sheet(settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, sheet)
    print(out)


def _pack(arguments: list[str]) -> None:
    chosen, rest = _split(arguments, ("data", "paths"))
    roots, options = read("data pack", rest, PackArguments, words="ROOT")
    if (options.to is None) != (options.format == "map"):
        raise UserError(
            "data pack: to=FOLDER is the new folder of the shards"
            if options.to is None
            else f"to={options.to} has no effect on format=map, which writes below paths.data_dir="
        )
    if options.format == "map":
        data = _data("pack", roots, [*chosen, "data.cache=true"])
        from dwsep_zoo.data.pipelines import CachePipeline

        data.prepare_data()
        data.setup()
        assert isinstance(data.pipeline, CachePipeline)
        print(f"{data.pipeline.path}: training with the same settings and data.cache=true reads it")
        return
    to = Path(options.to or "")
    check_writable("to", to.parent)
    data = _data("pack", roots, chosen)
    from dwsep_zoo.data.pack import pack

    done = pack(data, to, options.shard_mb * 1_000_000)
    for reason in done.skipped.values():
        print(f"left out: {reason}")
    print(
        f"{to}: {done.pictures:,} pictures in {done.shards:,} shards, {done.num_bytes / 1e6:,.1f} "
        f"MB; fingerprint {done.fingerprint}"
    )
    print(f"data=webdataset data.root={to} trains from it")


def _data(action: str, roots: Sequence[str], chosen: Sequence[str]) -> ImageData:
    """The data set that a command is about, not yet set up."""
    named = any(one.startswith("data=") for one in chosen)
    if len(roots) > 1 or bool(roots) == named:
        raise UserError(
            f"data {action}: name one folder, or a data set: dwsep data {action} pictures/, "
            f"dwsep data {action} data=imagenette"
        )
    if roots:
        from dwsep_zoo.config import quoted

        chosen = ["data=folder", f"data.root={quoted(roots[0])}", *chosen]
    settings = _settings(chosen)
    from dwsep_zoo.data import create_data

    return create_data(settings.data, seed=settings.seed, data_dir=settings.paths.data_dir)


def _split(arguments: Sequence[str], keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that choose settings of a run, and the others."""
    chosen: list[str] = []
    rest: list[str] = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        (chosen if equals and key.split(".")[0] in keys else rest).append(argument)
    return chosen, rest


def _settings(chosen: Sequence[str]) -> Settings:
    from dwsep_zoo.config import compose_settings

    return compose_settings(chosen)


def _lines(found: Check) -> Iterator[str]:
    yield f"{found.pictures:,} pictures, fingerprint {found.fingerprint or 'none, see below'}"
    yield from _listed("cannot be read", [*found.unreadable.values()])
    for split, counts in found.classes.items():
        yield f"  {split:10} {sum(counts.values()):,} in {len(counts)} classes: {_balance(counts)}"
    for name, what, groups in (
        ("same", "have the same bytes", found.same),
        ("near", "look nearly the same", found.near),
    ):
        marks = f"{found.across[name]} across splits, {found.labels[name]} with two labels"
        lines = ["  ".join(group[:3]) + (" ..." * (len(group) > 3)) for group in groups]
        yield from _listed(f"groups that {what}: {marks}", lines, always=True)
    yield f"  sizes      {_most(found.sizes)}"
    yield f"  modes      {_most(found.modes)}"
    yield from _listed("odd", [f"{name}: {reason}" for name, reason in found.odd.items()])


def _balance(counts: Mapping[str, int]) -> str:
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[least] == counts[most]:
        return f"{counts[most]:,} each"
    return f"{counts[least]:,} ({least}) to {counts[most]:,} ({most})"


def _most(counts: Mapping[str, int]) -> str:
    shown = [f"{name}: {count:,}" for name, count in list(counts.items())[:SHOWN]]
    return ", ".join(shown) + (" ..." if len(counts) > SHOWN else "")


def _listed(what: str, lines: Sequence[str], *, always: bool = False) -> Iterator[str]:
    if lines or always:
        yield f"  {len(lines):,} {what}"
        yield from (f"      {line}" for line in lines[:SHOWN])
        if len(lines) > SHOWN:
            yield f"      ... and {len(lines) - SHOWN:,} more; {JSON} lists all"
