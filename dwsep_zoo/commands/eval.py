"""``dwsep eval``: test a trained network of any format on a data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, read
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import check_writable
from dwsep_zoo.schema.texts import Place


class EvalArguments(Arguments):
    """Test a network; data=NAME and data.KEY=VALUE choose the data, as in training."""

    out: Place | None = Field(
        None, description="folder of result.json and predictions.npz; null: logs/eval/NAME"
    )
    split: Literal["test", "val", "train", "all"] = Field(
        "test", description="the images; all: of data that the network was not trained on"
    )
    latency: Annotated[float, Field(ge=0)] = Field(
        1.0, description="seconds of timing one image; 0: none"
    )


def run(arguments: list[str]) -> None:
    is_data = [a.partition("=")[0].split(".")[0] in ("data", "paths") for a in arguments]
    chosen = [a for a, data in zip(arguments, is_data, strict=True) if data]
    rest = [a for a, data in zip(arguments, is_data, strict=True) if not data]
    paths, options = read("eval", rest, EvalArguments, words="ARTEFACT")
    if len(paths) != 1:
        raise UserError("eval: for example: dwsep eval model.onnx data=cifar10")
    from dwsep_zoo.config import compose_settings

    settings = compose_settings(chosen) if chosen else None
    out = Path(options.out) if options.out else None
    if out:
        check_writable("out", out)
    from dwsep_zoo.artefacts import evaluate, open_artefact
    from dwsep_zoo.schema.settings import parse_settings

    artefact = open_artefact(paths[0])
    if settings is None:
        config = artefact.about.record.get("config")
        if not isinstance(config, dict):
            raise UserError(f"{paths[0]}: names no data of its own; choose some with data=NAME")
        settings = parse_settings(config)
    found = evaluate(
        artefact,
        settings.data,
        split=options.split,
        data_dir=settings.paths.data_dir,
        latency_s=options.latency,
    )
    folder = out or Path("logs", "eval", _name(paths[0], settings.data.name))
    found.save(folder)
    for name, value in found.record.metrics.items():
        print(f"{name.partition('/')[2]:18} {value:.4f}")
    for one in found.record.latency:
        mark = "" if one.stable else " (unsteady)"
        print(f"{'latency':18} {one.p50_ms:.2f} ms{mark}; {one.conditions}")
    print(f"{'size':18} {artefact.size_bytes / 1e6:.2f} MB")
    print(f"{'written to':18} {folder}; dwsep compare puts it beside others", file=sys.stdout)


def _name(source: str, data: str) -> str:
    path = Path(source)
    parts = [part for part in (*path.parent.parts[-2:], path.name) if part not in ("/", "..", ".")]
    return "-".join([*parts, data]).replace(" ", "_")
