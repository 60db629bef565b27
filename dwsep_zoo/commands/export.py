"""``dwsep export``: a trained network in the formats that people ship."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, Number, read
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.files import check_writable
from dwsep_zoo.schema.artefact import SUFFIXES
from dwsep_zoo.schema.texts import Place


class ExportArguments(Arguments):
    """Write a network with its classes and preprocessing, and compare it with PyTorch."""

    format: str | None = Field(None, description=f"{', '.join(SUFFIXES)}, or all; required")
    out: Place | None = Field(
        None, description="the file, or with format=all the folder; null: export/ in the run"
    )
    batch_size: Annotated[Number | Literal["any"], Field(union_mode="left_to_right")] = Field(
        1, description="images of a call, or any"
    )
    pixels: bool = Field(False, description="put the normalisation into the file: uint8 goes in")
    pictures: Place | None = Field(
        None, description="folder of pictures to compare on; null: test images of the run's data"
    )
    data_dir: Place = Field("data", description="folder of downloaded data")


def run(arguments: list[str]) -> None:
    paths, options = read("export", arguments, ExportArguments, words="ARTEFACT")
    if len(paths) != 1 or not options.format:
        raise UserError(
            "export: for example: dwsep export logs/train/runs/RUN format=onnx; formats: "
            f"{', '.join([*SUFFIXES, 'all'])}"
        )
    choose(options.format, [*SUFFIXES, "all"], "format")
    if options.out:
        check_writable("out", Path(options.out).parent)
    from dwsep_zoo.artefacts import export, open_artefact
    from dwsep_zoo.artefacts.sources import pictures_in

    artefact = open_artefact(paths[0])
    pictures = pictures_in([options.pictures]) if options.pictures else None
    batch = None if options.batch_size == "any" else options.batch_size
    found = []
    for name in _possible(batch) if options.format == "all" else [options.format]:
        out = options.out
        if out and options.format == "all":
            out = str(Path(out) / f"model{SUFFIXES[name]}")
        found.append(
            export(
                artefact,
                name,
                out,
                batch_size=batch,
                pixels=options.pixels,
                pictures=pictures,
                data_dir=options.data_dir,
            )
        )
        print(found[-1].line(), flush=True)
    if options.format == "all":
        from dwsep_zoo.artefacts.table import print_formats

        print_formats(artefact, found)


def _possible(batch_size: int | None) -> list[str]:
    """The formats that can be written here; the others are named."""
    from dwsep_zoo.artefacts.formats import FORMATS

    possible = []
    for name, kind in FORMATS.items():
        if batch_size is None and not kind.any_batch:
            print(f"without {name}, which takes a fixed number of images")
        elif line := kind.missing():
            print(f"without {name}; install it with: {line}")
        else:
            possible.append(name)
    return possible
