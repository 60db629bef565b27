"""What a network in a file says about itself: its classes, its images, and where it comes from.

Exported files carry it as JSON under the key :data:`KEY` of their metadata.
"""

from __future__ import annotations

import json

from pydantic import Field

from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.parse import parse
from dwsep_zoo.schema.part import Json, Number, Part
from dwsep_zoo.schema.upgrade import upgrade_config

KEY = "dwsep_zoo"
SCHEMA = 1
SUFFIXES = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "torch_export": ".pt2",
    "executorch": ".pte",
    "litert": ".tflite",
}
"""The formats of exported files, and what their main files end in."""


class Description(Part):
    """The description of an artefact.

    Attributes:
        version: of this layout, ``schema`` in the file.
        network: arguments of ``create_model`` that rebuild the network.
        class_names: of the outputs, in order; empty: unknown.
        image_size: side of an image in pixels.
        mean: of each channel, of values in 0-1.
        std: likewise.
        interpolation: of resizing.
        crop_pct: part of the resized shorter side that is used.
        background: colour below transparent pictures; ``None``: white.
        precision: of weights and activations: fp32, bf16 or int8.
        pixels: whether the file takes uint8 pixels and normalises them itself.
        batch_size: images that a call takes; ``None``: any number.
        record: keys of the ``result.json`` of the run, as far as they are about the network.
        quantisation: how an int8 network was made.
    """

    version: int = Field(default=SCHEMA, alias="schema")
    network: Json
    num_classes: int = Field(ge=1)
    class_names: tuple[str, ...] = ()
    in_chans: int = Field(3, ge=1)
    image_size: int = Field(ge=1)
    mean: tuple[Number, ...]
    std: tuple[Number, ...]
    interpolation: str = "bicubic"
    crop_pct: Number = 0.875
    background: str | None = None
    precision: str = "fp32"
    pixels: bool = False
    batch_size: int | None = None
    record: Json = Field(default_factory=dict)
    quantisation: Json = Field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(self.plain(), ensure_ascii=False)

    def replace(self, **changes: object) -> Description:
        return parse(Description, {**self.plain(), **changes})


def read_description(text: object, what: str) -> Description:
    """Parse the metadata of a file.

    Raises:
        UserError: in one line that begins with ``what``: there is none, it is of a newer version,
            or it contradicts itself.
    """
    if not isinstance(text, str) or not text:
        raise UserError(f"{what}: was not exported by dwsep_zoo; it does not name its classes")
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what}: its description is damaged ({error})") from None
    version = values.get("schema", 1)
    if version not in range(1, SCHEMA + 1):
        raise UserError(f"{what}: its description is of version {version!r}; known: {SCHEMA}")
    record = values.get("record")
    if isinstance(record, dict) and isinstance(config := record.get("config"), dict):
        # The first files did not say by which version their run was recorded.
        values["record"] = {**record, "config": upgrade_config(config, record.get("schema", 3))}
    try:
        found = parse(Description, values)
    except UserError as error:
        raise UserError(f"{what}: its description is wrong: {error}") from None
    check_description(found, what)
    return found


def check_description(found: Description, what: str) -> None:
    """Raises UserError where the parts of a description contradict each other."""
    names, classes = found.class_names, found.num_classes
    if names and len(names) != classes:
        raise UserError(f"{what}: its description names {len(names)} classes, not {classes}")
    if len(set(names)) != len(names):
        raise UserError(f"{what}: its description names a class twice")
    for key in ("mean", "std"):
        if len(getattr(found, key)) != found.in_chans:
            raise UserError(f"{what}: its description has another number of channels in {key}")
    if not all(value > 0 for value in found.std) or not 0 < found.crop_pct <= 1:
        raise UserError(f"{what}: its description has an impossible std or crop_pct")
