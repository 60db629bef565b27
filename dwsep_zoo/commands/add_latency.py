"""``dwsep add-latency``: a time measured elsewhere, such as on a phone, in a run's record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, Number, read
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import check_writable
from dwsep_zoo.schema.record import FILE_NAME, LatencyRecord, read_record, update_record
from dwsep_zoo.schema.texts import checked_place

Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
EXAMPLE = (
    "dwsep add-latency logs/eval/RUN p50_ms=3.2 device=phone device_name='Pixel 9' "
    "runtime=executorch threads=4"
)


class AddLatencyArguments(Arguments):
    """Write a latency that was measured elsewhere into result.json, with its conditions."""

    p50_ms: Milliseconds | None = Field(None, description="median time of a batch; required")
    p10_ms: Milliseconds | None = Field(None, description="a tenth of the times are below")
    p90_ms: Milliseconds | None = Field(None, description="a tenth of the times are above")
    runs: Number | None = Field(None, description="number of timed batches")
    device: str | None = Field(None, description="its kind: phone, cpu, npu ...; required")
    device_name: str | None = Field(None, description="its name; required")
    runtime: str | None = Field(None, description="executorch, tflite, onnxruntime ...; required")
    precision: str = Field("fp32", description="fp32, bf16, int8 ...")
    batch_size: Number = Field(1, description="images of a batch")
    threads: Number | None = Field(None, description="of the processor")


def run(arguments: list[str]) -> None:
    paths, options = read("add-latency", arguments, AddLatencyArguments, words="RUN")
    required = ("p50_ms", "device", "device_name", "runtime")
    if missing := [key for key in required if getattr(options, key) is None]:
        raise UserError(f"add-latency: {', '.join(missing)} must be given, for example: {EXAMPLE}")
    ends = [value for value in (options.p10_ms, options.p50_ms, options.p90_ms) if value]
    if ends != sorted(ends):
        raise UserError(f"add-latency: p10_ms <= p50_ms <= p90_ms does not hold: {ends}")
    if len(paths) != 1:
        raise UserError(f"add-latency: name the folder of one run, for example: {EXAMPLE}")
    folder = Path(checked_place("run", paths[0])).expanduser()
    file = folder / FILE_NAME
    if not file.is_file():
        raise UserError(f"{folder}: not the folder of a run (it has no {FILE_NAME})")
    check_writable("run", folder)
    try:
        record = read_record(file)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    added = LatencyRecord(**options.plain(), memory_format="own layout")
    others = [one for one in record.latency if one.conditions != added.conditions]
    update_record(file, latency=[one.plain() for one in (*others, added)])
    print(f"{file}: {added.p50_ms:g} ms; {added.conditions}")
