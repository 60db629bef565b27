"""The record of a run: training writes it to ``result.json``, reports read it.

Every key is declared here once; if it was not recorded, it is ``None`` or empty. New ones are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

from pydantic import Field, JsonValue

from dwsep_zoo.errors import UserError
from dwsep_zoo.files import atomic_write
from dwsep_zoo.schema.parse import parse
from dwsep_zoo.schema.part import Json, Measured, Number, Part
from dwsep_zoo.schema.process import has_ended
from dwsep_zoo.schema.teacher import TeacherRecord
from dwsep_zoo.schema.upgrade import upgrade_config

FILE_NAME = "result.json"
SCHEMA = 6
UNEQUAL = 1.5  # times as many images as the rarest class


class Conditions(Part):
    """Conditions of a latency measurement; two latencies compare only if all of them are equal."""

    device: str | None = None
    device_name: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    precision: str | None = None
    memory_format: str | None = None
    runtime: str | None = None

    def __str__(self) -> str:
        name = " ".join(part for part in (self.device, self.device_name) if part)
        threads = self.threads and f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        batch = self.batch_size and f"batch {self.batch_size}"
        parts = (name, threads, batch, self.precision, self.memory_format, self.runtime)
        return ", ".join(part for part in parts if part) or "conditions not recorded"


class LatencyRecord(Conditions):
    """Milliseconds for one batch, as percentiles over single inferences.

    Attributes:
        runs: number of timed inferences.
        stable: whether the times were steady while measuring.
    """

    p50_ms: Measured = None
    p10_ms: Measured = None
    p90_ms: Measured = None
    runs: int | None = None
    stable: bool | None = None

    @cached_property
    def conditions(self) -> Conditions:
        return Conditions(**{name: getattr(self, name) for name in Conditions.model_fields})


class Match(Part):
    """An equal budget: the width at which a network costs as much as another conv type.

    Attributes:
        quantity: the cost that was equalised: params, macs or latency.
        to: conv type of the network that sets the budget.
        target: its parameters, multiply-adds for one image, or milliseconds.
        achieved: the cost of the network whose width was solved for.
        width_mult: that width.
        residual: ``achieved / target - 1``.
    """

    quantity: str
    to: str
    target: Number
    achieved: Number
    width_mult: Number
    residual: Number

    @classmethod
    def of(
        cls, quantity: str, to: str, *, target: float, achieved: float, width_mult: float
    ) -> Match:
        """A match with its residual computed."""
        return cls(
            quantity=quantity,
            to=to,
            target=target,
            achieved=achieved,
            width_mult=width_mult,
            residual=achieved / target - 1,
        )


class Machine(Part):
    """The machine that trained."""

    cpu: str | None = None
    cores: int | None = None
    threads: int | None = None
    gpu: str | None = None
    system: str | None = None


class Process(Part):
    """The process that writes a record.

    Attributes:
        started: in clock ticks; another process may have had the same number before.
    """

    pid: int | None = None
    host: str | None = None
    started: int | None = None


class DataRecord(Part):
    """The data set, its preprocessing and its splits.

    Attributes:
        splits: number of images by split.
        fingerprint: hash of the images, labels and splits.
        skipped: number of pictures that could not be read and were left out.
        subset: the part that was drawn, with the names of its images; ``None``: all of the data.
        background: colour below transparent pictures; ``None``: white.
        read_from: memory, cache or files.
        augment: random changes of training images.
    """

    name: str | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    in_chans: int | None = None
    image_size: int | None = None
    mean: tuple[Number, ...] = ()
    std: tuple[Number, ...] = ()
    interpolation: str | None = None
    crop_pct: Measured = None
    background: str | None = None
    splits: Mapping[str, int] = {}
    fingerprint: str | None = None
    skipped: int = 0
    subset: Json | None = None
    read_from: str | None = None
    augment: Json = Field(default_factory=dict)


class PerClass(Part):
    """The test by class, in the order of ``data.class_names``.

    Attributes:
        images: of each class.
        accuracy: part of them that was classified correctly; ``None``: the class has none.
        balanced_acc: mean accuracy of the classes that have images.
        macro_f1: mean F1 of the classes that have images or were predicted.
    """

    images: tuple[int, ...] = ()
    accuracy: tuple[Measured, ...] = ()
    balanced_acc: Measured = None
    macro_f1: Measured = None

    @property
    def unequal(self) -> bool:
        """Whether some classes have so many more images that accuracy is mostly theirs."""
        counts = [number for number in self.images if number]
        return bool(counts) and max(counts) > UNEQUAL * min(counts)


class Memory(Part):
    """Megabytes: peak of the process, and peaks of one inference and of one training step.

    Attributes:
        batch_size: images of the training step; the inference is of one image.
    """

    peak_mb: Measured = None
    inference_mb: Measured = None
    training_mb: Measured = None
    batch_size: int | None = None


class Time(Part):
    """Seconds of training with validation, and of the whole run."""

    train_s: Measured = None
    total_s: Measured = None


class Search(Part):
    """The search for recipe values of a variant.

    Attributes:
        space: lowest and highest value by key of the recipe.
        best: the values that were found.
        per: what was searched for separately.
        epochs: of a trial; ``None``: as many as the run has.
        all: values and validation accuracy of every trial.
    """

    trials: int | None = None
    space: Mapping[str, tuple[Number, ...]] = {}
    best: Mapping[str, Measured] = {}
    best_val_acc: Measured = None
    per: str | None = None
    epochs: int | None = None
    seed: int | None = None
    all: tuple[Mapping[str, Measured], ...] = ()


class RunRecord(Part):
    """All that is recorded about a run.

    Attributes:
        version: of this layout, ``schema`` in the file.
        process: the one that writes this.
        width_mult: of the network that was trained, also where it was solved for.
        match: ``None`` if the width was used as given.
        config: the settings of the run; ``dwsep_zoo.schema.settings`` parses them.
        network: arguments of ``create_model`` that rebuild the network.
        input_size: (C, H, W).
        macs: multiply-adds for one image.
        size_bytes: of the state dict.
        best_epoch: counted from 1; best in validation, whose weights were tested.
        epochs: number of finished epochs.
        metrics: of the best epoch, and of the test; accuracies are fractions.
        roofline: time of every layer, see ``dwsep_zoo.schema.roofline``.
        compiled: whether training steps were compiled.
        own_kernels: whether this project's CPU kernels were in use.
        in_turns: when a sweep measured its networks together, the same for all of them.
        teacher: whose outputs it learned besides the labels; ``None``: it had none.
        artefact: where this is of an exported file: its format, runtime, precision and making.
    """

    version: int = Field(default=SCHEMA, alias="schema")
    status: str = "unknown"
    error: str | None = None
    name: str | None = None
    model: str
    conv: str
    conv_options: Json = Field(default_factory=dict)
    width_mult: Measured = None
    seed: int | None = None
    tags: tuple[str | int | float | bool, ...] = ()
    config: Json = Field(default_factory=dict)
    started: str | None = None
    process: Process = Process()
    command: str | None = None
    versions: Mapping[str, str | None] = {}
    git_commit: str | None = None
    machine: Machine = Machine()
    output_stride: int | None = None
    network: Json = Field(default_factory=dict)
    match: Match | None = None
    data: DataRecord = DataRecord()
    input_size: tuple[int, ...] = ()
    params: int | None = None
    macs: int | None = None
    size_bytes: int | None = None
    search: Search | None = None
    best_epoch: int | None = None
    metrics: Mapping[str, Measured] = {}
    per_class: PerClass | None = None
    latency: tuple[LatencyRecord, ...] = ()
    memory: Memory = Memory()
    roofline: Json | None = None
    images_per_second: Measured = None
    time: Time = Time()
    epochs: int | None = None
    precision: str | None = None
    device: str | None = None
    compiled: bool | None = None
    own_kernels: bool | None = None
    finished: str | None = None
    in_turns: str | None = None
    teacher: TeacherRecord | None = None
    artefact: Json = Field(default_factory=dict)

    def latency_under(self, conditions: Conditions) -> LatencyRecord | None:
        """The latency that was measured under these conditions."""
        found = (entry for entry in self.latency if entry.conditions == conditions)
        return next((entry for entry in found if entry.p50_ms is not None), None)

    def configured(self, key: str) -> JsonValue:
        """A setting by its dotted name; ``None`` if it is null or absent."""
        value: JsonValue = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def _upgrade(values: Json, version: int) -> Json:
    """The content of an older record with the settings of today's typed configuration."""
    match = values.get("match")
    if isinstance(match, dict) and match.get("to") == values.get("conv"):
        values = {**values, "match": None}  # a network was once matched to itself
    if isinstance(config := values.get("config"), dict):
        values = {**values, "config": upgrade_config(config, version)}
    return values


def parse_record(values: object) -> RunRecord:
    """Read the content of a ``result.json`` of this or an older version.

    Raises:
        UserError: in one line that names the key, but no file, which only the caller knows.
    """
    if not isinstance(values, dict):
        raise UserError("it does not hold a JSON object")
    version = values.get("schema", 1)
    if version not in range(1, SCHEMA + 1):
        raise UserError(f"its schema is {version!r}; this version reads up to {SCHEMA}")
    values = _upgrade(values, version) if version < SCHEMA else values
    return parse(RunRecord, {**values, "schema": SCHEMA})


def read_record(path: Path) -> RunRecord:
    """Read a ``result.json``; a run whose process has ended was interrupted.

    Raises:
        UserError: if it is damaged or newer than this version; see :func:`parse_record`.
        OSError: if it cannot be opened.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is not JSON: {error}") from None
    record = parse_record(values)
    writer = record.process
    if record.status == "running" and has_ended(writer.pid, writer.host, writer.started):
        ended = {"status": "interrupted", "error": f"its process {writer.pid} was killed"}
        return record.model_copy(update=ended)
    return record


def write_record(path: Path, record: RunRecord) -> None:
    """Replace a ``result.json`` in one step."""
    atomic_write(path, json.dumps(record.plain(), indent=2) + "\n")


def update_record(path: Path, **values: object) -> None:
    """Change keys of a ``result.json``."""
    write_record(path, parse_record({**read_record(path).plain(), **values}))


class RecordFile:
    """The record of a run in progress, checked and written at every change.

    Args:
        folder: of the run.
        enabled: whether to write; false in all but one process of a run.
        values: to begin with; ``model`` and ``conv`` are required.

    Attributes:
        begun: whether the run has made its first step.
    """

    begun = False

    def __init__(self, folder: Path, *, enabled: bool = True, **values: object):
        self.path, self.enabled = folder / FILE_NAME, enabled
        self._set({"schema": SCHEMA, "status": "running", "error": None, **values})

    def update(self, **values: object) -> None:
        """Set keys of the record."""
        self._set({**self.record.plain(), **values})

    def _set(self, values: Mapping[str, object]) -> None:
        self.record = parse_record(values)
        if self.enabled:
            write_record(self.path, self.record)


def now() -> str:
    """The time as ISO 8601 with the offset to UTC."""
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
