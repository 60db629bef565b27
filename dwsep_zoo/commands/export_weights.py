"""``dwsep export-weights``: the weights of a run for timm or torchvision."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, read
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import check_writable
from dwsep_zoo.schema.texts import Place, checked_place


class ExportArguments(Arguments):
    """Write the weights of a run so that timm or torchvision loads them."""

    to: str | None = Field(None, description="timm or torchvision; required")
    out: Place | None = Field(None, description="a new .safetensors or .pth file; required")


def run(arguments: list[str]) -> None:
    paths, options = read("export-weights", arguments, ExportArguments, words="RUN")
    if len(paths) != 1 or not options.to or not options.out:
        raise UserError(
            "export-weights: for example: dwsep export-weights logs/train/runs/RUN to=timm "
            "out=weights.safetensors"
        )
    check_writable("out", Path(options.out).parent)
    from dwsep_zoo.weights import export_weights

    name = export_weights(checked_place("run", paths[0]), options.to, options.out)
    print(f"{options.out}: for {options.to}'s {name}")
