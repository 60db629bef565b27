"""``dwsep quantise``: int8 after training, and what it costs each layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, Number, read
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.files import check_writable
from dwsep_zoo.schema.texts import Place
from dwsep_zoo.terminal import stdout_console, table

if TYPE_CHECKING:
    from dwsep_zoo.quantise import LayerLoss

TO = ("onnx", "openvino", "executorch", "litert")
MOST_PICTURES = 512  # they go through the network at once
FOR_DIAGNOSIS = {"diagnose", "calibration", "pictures", "data_dir"}
HEADINGS = (
    *("layer", "kind", "channels", "widest / narrowest"),
    *("dB per channel", "dB per tensor", "dB equalised"),
)


class QuantiseArguments(Arguments):
    """Write a network in int8 and compare it with the float network."""

    to: str | None = Field(None, description=f"{', '.join(TO)}; required")
    out: Place | None = Field(None, description="the file; null: export/model-int8 in the run")
    scheme: Literal["per_channel", "per_tensor"] = Field(
        "per_channel", description="a scale for each output channel of the weights, or one a layer"
    )
    equalise: Annotated[bool | Literal["auto", "ceilings"], Field(union_mode="left_to_right")] = (
        Field(
            "auto",
            description="make the channels' ranges equal before; auto: with per_tensor, if the "
            "run was not trained so; ceilings: also of channels that reach a ReLU6's six, which is "
            "slower",
        )
    )
    learned_rounding: bool = Field(
        False, description="round each weight up or down so that its layer's outputs stay"
    )
    bias_correction: bool = Field(True, description="make up for the mean error of rounded weights")
    calibration: Annotated[int, Field(ge=2, le=MOST_PICTURES)] = Field(
        32, description="number of pictures that ranges are taken from"
    )
    pictures: Place | None = Field(
        None,
        description="folder or pattern of pictures to calibrate with and to compare on; null: "
        "training and test images of the run's data",
    )
    batch_size: Annotated[Number | Literal["any"], Field(union_mode="left_to_right")] = Field(
        1, description="images of a call, or any"
    )
    diagnose: bool = Field(
        False, description="write nothing, show what rounding costs each layer; or --diagnose"
    )
    data_dir: Place = Field("data", description="folder of downloaded data")


def run(arguments: list[str]) -> None:
    words = ["diagnose=true" if word == "--diagnose" else word for word in arguments]
    paths, options = read("quantise", words, QuantiseArguments, words="ARTEFACT")
    if len(paths) != 1 or not (options.to or options.diagnose):
        raise UserError(
            "quantise: for example: dwsep quantise logs/train/runs/RUN to=openvino; to: "
            f"{', '.join(TO)}; or --diagnose"
        )
    if options.to:
        choose(options.to, TO, "to")
    if options.diagnose and (idle := options.model_fields_set - FOR_DIAGNOSIS):
        raise UserError(f"{min(idle)}= has no effect on --diagnose, which writes nothing")
    if options.out:
        check_writable("out", Path(options.out).parent)
    from dwsep_zoo.artefacts import open_artefact
    from dwsep_zoo.quantise import diagnose_artefact, quantise
    from dwsep_zoo.quantise.calibration import pictures_of

    artefact = open_artefact(paths[0])
    given = pictures_of(artefact, options.pictures) if options.pictures else None
    if options.diagnose:
        plain, equal = diagnose_artefact(
            artefact, calibration=options.calibration, pictures=given, data_dir=options.data_dir
        )
        return _show(plain, equal)
    found = quantise(
        artefact,
        options.to or "",
        options.out,
        scheme=options.scheme,
        equalise=None if options.equalise == "auto" else options.equalise,
        learned_rounding=options.learned_rounding,
        bias_correction=options.bias_correction,
        calibration=options.calibration,
        pictures=given,
        batch_size=None if options.batch_size == "any" else options.batch_size,
        data_dir=options.data_dir,
    )
    print(found.line())


def _show(plain: list[LayerLoss], equal: list[LayerLoss]) -> None:
    from dwsep_zoo.quantise import culprit

    worst = culprit(plain)
    rows = [
        [
            f"[bold]{one.name}[/]" if one is worst else one.name,
            one.kind,
            str(one.channels),
            f"{one.spread:,.1f}",
            f"{one.decibels['per_channel']:.1f}",
            f"{one.decibels['per_tensor']:.1f}",
            f"{after.decibels['per_tensor']:.1f}",
        ]
        for one, after in zip(plain, equal, strict=True)
    ]
    title = "signal over noise of each layer's output with int8 weights, mean over channels"
    stdout_console().print(table(title, HEADINGS, rows, words=HEADINGS[:2]))
    print(
        f"most is lost in {worst.name}, {worst.kind}: {worst.decibels['per_tensor']:.1f} dB with "
        f"one scale for all channels, {worst.decibels['per_channel']:.1f} dB with one for each; "
        f"the weights of its widest channel are {worst.spread:,.0f} times those of its narrowest"
    )
