"""``dwsep data``: a look at a data set before a network is trained on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, read
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.files import atomic_write, check_writable
from dwsep_zoo.schema.texts import Place

if TYPE_CHECKING:
    from dwsep_zoo.data.check import Check
    from dwsep_zoo.schema.settings import Settings

ACTIONS = ("check", "show")
SHOWN = 5
"""Lines of each finding on the terminal; --json has all."""
JSON = "--json"
USAGE = """\
usage: dwsep data check ROOT | data=NAME [--json]
       dwsep data show data=NAME [recipe=NAME] [out=sheet.png]
"""


class CheckArguments(Arguments):
    """Read every picture of a folder or of data=NAME: unreadable, repeated and odd ones."""


class ShowArguments(Arguments):
    """Draw some training pictures as the network gets them in its first epochs.

    data=NAME, data.KEY=VALUE, recipe=NAME, experiment=NAME and seed=N choose.
    """

    out: Place = Field("sheet.png", description="the picture")


def run(arguments: list[str]) -> None:
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        sys.exit(0)
    if not arguments:
        raise UserError("data: check or show, for example: dwsep data check pictures/")
    action, *rest = arguments
    choose(action, ACTIONS, "action of dwsep data")
    (_check if action == "check" else _show)(rest)


def _check(arguments: list[str]) -> None:
    chosen, rest = _split([one for one in arguments if one != JSON], ("data", "paths"))
    roots, _ = read("data check", rest, CheckArguments, words="ROOT")
    if len(roots) > 1 or bool(roots) == bool(chosen):
        raise UserError(
            "data check: name one folder, or a data set: dwsep data check pictures/, "
            "dwsep data check data=cifar10"
        )
    if roots:
        chosen = ["data=folder", f"data.root={json.dumps(roots[0])}"]
    settings = _settings(chosen)
    from dwsep_zoo.data import create_data
    from dwsep_zoo.data.check import check_data

    data = create_data(settings.data, seed=settings.seed, data_dir=settings.paths.data_dir)
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
