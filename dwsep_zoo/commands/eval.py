"""``dwsep eval``: test a trained network of any format on a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, read
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import check_writable
from dwsep_zoo.schema.texts import Place

if TYPE_CHECKING:
    from dwsep_zoo.artefacts import Artefact, Evaluation


class EvalArguments(Arguments):
    """Test networks; data=NAME and data.KEY=VALUE choose the data, as in training."""

    out: Place = Field("logs/eval", description="folder for a folder of each artefact")
    split: Literal["test", "val", "train", "all"] = Field(
        "test", description="the images; all: of data that the network was not trained on"
    )
    latency: Annotated[float, Field(ge=0)] = Field(
        1.0, description="seconds of timing one image; 0: none"
    )


def run(arguments: list[str]) -> None:
    chosen: list[str] = []
    rest: list[str] = []
    for argument in arguments:
        is_data = argument.partition("=")[0].split(".")[0] in ("data", "paths")
        (chosen if is_data else rest).append(argument)
    sources, options = read("eval", rest, EvalArguments, words="ARTEFACT ...")
    if not sources:
        raise UserError("eval: for example: dwsep eval model.onnx data=cifar10")
    out = Path(options.out)
    check_writable("out", out)
    from dwsep_zoo.config import compose_settings

    given = compose_settings(chosen) if chosen else None
    from dwsep_zoo.artefacts import evaluate, open_artefact
    from dwsep_zoo.artefacts.data import own_settings

    for artefact in [open_artefact(source) for source in sources]:
        settings = given or own_settings(artefact, "choose some with data=NAME")
        found = evaluate(
            artefact,
            settings.data,
            split=options.split,
            data_dir=settings.paths.data_dir,
            latency_s=options.latency,
        )
        folder = out / _name(artefact.what, settings.data.name, options.split, chosen)
        found.save(folder)
        _print(artefact, found, folder)


def _print(artefact: Artefact, found: Evaluation, folder: Path) -> None:
    from dwsep_zoo.report import corruptions

    metrics = {k: v for k, v in found.record.metrics.items() if k.startswith("test/")}
    lines = {key.partition("/")[2]: f"{value:.4f}" for key, value in metrics.items()}
    if (by_class := found.record.per_class) is not None:
        lines["balanced accuracy"] = f"{by_class.balanced_acc:.4f}"
        lines["macro F1"] = f"{by_class.macro_f1:.4f}"
    for one in found.record.latency:
        mark = "" if one.stable else " (unsteady)"
        lines["latency"] = f"{one.p50_ms:.2f} ms{mark}; {one.conditions}"
    lines["size"] = f"{artefact.size_bytes / 1e6:.2f} MB"
    if found.skipped:
        lines["left out"] = f"{len(found.skipped)} pictures, listed in skipped.txt"
    lines["written to"] = f"{folder}; dwsep compare sets it beside others"
    print(artefact.what, *(f"  {name:18} {text}" for name, text in lines.items()), sep="\n")
    for line in corruptions.lines(found.record.metrics):
        print(f"  {line}")


def _name(source: str, data: str, split: str, chosen: Sequence[str]) -> str:
    """Name of the folder: artefact, data set, hash of ``data.KEY=`` words, split if not test."""
    path = Path(source)
    parts = [part for part in (*path.parent.parts[-2:], path.name) if part not in ("/", "..", ".")]
    words = sorted(word for word in chosen if word.startswith("data."))
    if words:
        data += f"-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:6]}"
    if split != "test":
        data += f"-{split}"
    return "-".join([*parts, data]).replace(" ", "_")
