"""``dwsep inspect``: the pictures of a run, drawn again."""

from __future__ import annotations

from pathlib import Path

from dwsep_zoo.commands.arguments import Arguments, read
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import check_writable
from dwsep_zoo.schema.texts import checked_place


class InspectArguments(Arguments):
    """Draw batch, confusion, mistakes, curves, filters and recipe of a run into its folder."""


def run(arguments: list[str]) -> None:
    paths, _ = read("inspect", arguments, InspectArguments, words="RUN")
    if len(paths) != 1:
        raise UserError(
            "inspect: name the folder of one run, for example: dwsep inspect logs/train/runs/RUN"
        )
    folder = Path(checked_place("run", paths[0])).expanduser()
    check_writable("run", folder)
    from dwsep_zoo.training.pictures import inspect_run

    drawn = inspect_run(folder)
    for name in drawn.names:
        print(folder / name)
    for file, reason in {**drawn.left_out, **drawn.failed}.items():
        print(f"{file}: not drawn: {reason}")
    if not drawn.names:
        raise UserError(f"{folder}: no picture could be drawn")
