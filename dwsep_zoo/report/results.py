"""Reading the folders of runs: ``result.json``, ``metrics.csv`` and ``predictions.npz``."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dwsep_zoo.errors import UserError
from dwsep_zoo.report.statistics import Predictions

T = TypeVar("T")

SCHEMA = 1

# What may differ between two runs of one table. Everything else in these groups of the
# configuration bears on accuracy or training time, keys that do not exist yet included.
_HARMLESS = {
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.enable_checkpointing",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    "recipe.epochs",  # trainer.max_epochs says it
}
_DATA = ("name", "fingerprint", "interpolation", "crop_pct", "mean", "std", "augment")
_IDENTITY = {"model.name", "model.width_mult", "model.output_stride"}


@dataclass(frozen=True)
class Conditions:
    """What a latency was measured under; two latencies compare only if all of it is equal."""

    device: str | None
    device_name: str | None
    threads: int | None
    batch_size: int | None
    precision: str | None
    memory_format: str | None
    runtime: str | None

    def __str__(self) -> str:
        name = " ".join(part for part in (self.device, self.device_name) if part)
        threads = None if self.threads is None else _count(self.threads, "thread")
        batch = None if self.batch_size is None else f"batch {self.batch_size}"
        parts = (name, threads, batch, self.precision, self.memory_format, self.runtime)
        return ", ".join(part for part in parts if part) or "conditions not recorded"


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds for one batch, of single inferences.

    Attributes:
        stable: whether the times were steady; ``None`` if not recorded.
    """

    p50: float
    p10: float | None
    p90: float | None
    stable: bool | None


@dataclass(frozen=True)
class Match:
    """An equal budget: the width was solved for.

    Attributes:
        quantity: what was made equal: params, macs or latency.
        to: the conv type whose cost is the target.
        width_mult: of the network that gives the target, as it was given.
        residual: what is achieved beyond the target, relative to it.
    """

    quantity: str
    to: str
    width_mult: float | None
    target: float
    achieved: float
    residual: float


@dataclass(frozen=True)
class Run:
    """One run; ``None`` where it has not measured something.

    Attributes:
        folder: where its ``result.json`` lies.
        status: finished, running, failed or interrupted.
        width_mult: of the network that was trained, also if it was solved for.
        match: ``None`` if the width is as given.
        searched: values of the recipe that were found by a search for this variant.
        accuracy: on the test set, 0-1.
        best_epoch: best in validation, whose state was tested; counted from 1.
        last_epoch: with which the training ended.
        splits: number of images of each part of the data.
        macs: multiply-adds for one image of ``input_size``.
        latency: for one batch, by the conditions.
        turns: the same for networks whose latencies were measured in turns; ``None``: alone.
        train_s: seconds of training and validation.
        setting: what has to be equal for a fair comparison (data, input size, recipe, epochs, ...),
            as pairs of a name and a text.
        machine: what training time depends on besides the network.
        record: everything in ``result.json``.
        epochs: the rows of ``metrics.csv`` (epoch, train/loss, train/acc, val/loss, ...), without
            what was not measured.
        predictions: of ``predictions.npz``; ``None`` if there is none.
    """

    folder: Path
    name: str
    status: str
    error: str | None
    model: str
    conv: str
    conv_options: tuple[tuple[str, str], ...]
    width_mult: float | None
    match: Match | None
    output_stride: int | None
    searched: tuple[tuple[str, float], ...]
    tags: tuple[str, ...]
    seed: int | None
    accuracy: float | None
    best_epoch: int | None
    last_epoch: int | None
    splits: tuple[tuple[str, int], ...]
    params: int | None
    macs: int | None
    input_size: tuple[int, ...]
    latency: Mapping[Conditions, Percentiles]
    turns: str | None
    train_s: float | None
    images_per_second: float | None
    setting: tuple[tuple[str, str], ...]
    machine: str
    finished: str
    record: Mapping[str, Any]
    epochs: tuple[Mapping[str, float], ...] = ()
    predictions: Predictions | None = None


@dataclass(frozen=True)
class Problem:
    """A file that could not be read, and why."""

    path: Path
    reason: str


def load_results(paths: Iterable[Path | str]) -> tuple[list[Run], list[Problem]]:
    """Read every run at or below ``paths``, each once, sorted by path.

    Returns:
        The runs, and the damaged files. Without its ``result.json`` a run is none; one of its other
        files is left out of it.

    Raises:
        UserError: if a path does not exist or no ``result.json`` is found.
    """
    folders = [Path(path) for path in paths]
    runs, problems = [], []

    def attempt(read: Callable[[Path], T], file: Path) -> T | None:
        try:
            return read(file)
        # Damaged files make every library on the way (json, csv, zipfile, zlib, numpy) raise errors
        # of its own, and not only those that it documents.
        except Exception as error:
            problems.append(Problem(file, _one_line(error) or type(error).__name__))
            return None

    for file in sorted({f.resolve(): f for folder in folders for f in _find(folder)}.values()):
        run = attempt(_read, file)
        if run is None:
            continue
        epochs = attempt(_read_epochs, file.with_name("metrics.csv"))
        predictions = None
        if run.accuracy is not None:
            predictions = attempt(
                partial(_read_predictions, run.accuracy), file.with_name("predictions.npz")
            )
        runs.append(replace(run, epochs=epochs or (), predictions=predictions))
    if not runs and not problems:
        where = ", ".join(str(path) for path in folders)
        raise UserError(f"no result.json below {where}; a run writes it into its folder")
    return runs, problems


def _find(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist; name folders of runs, for example logs")
    if path.is_file():
        if path.name != "result.json":
            raise UserError(f"{path} is neither a folder nor a result.json")
        yield path
    else:
        yield from path.rglob("result.json")


def _read(file: Path) -> Run:
    record = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError("it does not hold a JSON object")
    if record.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"its schema is {record['schema']!r}; this version reads {SCHEMA}")
    for key in ("model", "conv"):
        if not isinstance(record.get(key), str):
            raise ValueError(f"it names no {key}")
    return Run(
        folder=file.parent,
        name=str(record.get("name") or file.parent.name),
        status=str(record.get("status", "unknown")),
        error=_one_line(record["error"]) if record.get("error") else None,
        model=record["model"],
        conv=record["conv"],
        conv_options=tuple(_flatten(_object(record, "conv_options"))),
        width_mult=_number(record, "width_mult"),
        match=_match(record),
        output_stride=_integer(record, "output_stride"),
        searched=tuple(
            (key, value)
            for key in sorted(_object(record, "search", "best"))
            if (value := _number(record, "search", "best", key)) is not None
        ),
        tags=tuple(map(str, _list(record, "tags"))),
        seed=_integer(record, "seed"),
        accuracy=_number(record, "metrics", "test/acc"),
        best_epoch=_integer(record, "best_epoch"),
        last_epoch=_integer(record, "epochs"),
        splits=tuple(
            (name, number)
            for name in _object(record, "data", "splits")
            if (number := _integer(record, "data", "splits", name)) is not None
        ),
        params=_integer(record, "params"),
        macs=_integer(record, "macs"),
        input_size=tuple(_list(record, "input_size")),
        latency=dict(_latencies(record)),
        turns=str(record["in_turns"]) if record.get("in_turns") else None,
        train_s=_number(record, "time", "train_s"),
        images_per_second=_number(record, "images_per_second"),
        setting=tuple(sorted(_setting(record).items())),
        machine=_machine(record),
        finished=str(record.get("finished") or ""),
        record=record,
    )


def _read_epochs(file: Path) -> tuple[Mapping[str, float], ...]:
    if not file.exists():
        return ()
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, strict=True))
    if not all(row.get("epoch") for row in rows):
        raise ValueError("a row names no epoch")
    if any(None in row for row in rows):
        raise ValueError("a row has more values than the heading")
    return tuple({key: float(text) for key, text in row.items() if text} for row in rows)


def _read_predictions(accuracy: float, file: Path) -> Predictions | None:
    if not file.exists():
        return None
    import numpy as np

    with file.open("rb") as stream:  # numpy leaves a damaged file open
        arrays = np.load(stream, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is no .npz")
        missing = {"label", "predicted"} - set(arrays)
        if missing:
            raise ValueError(f"it holds no {' and no '.join(sorted(missing))}")
        label, predicted = arrays["label"], arrays["predicted"]
    if label.ndim != 1 or label.shape != predicted.shape or not label.size:
        raise ValueError(f"label is {label.shape} and predicted {predicted.shape}, not (N,) both")
    if not all(np.issubdtype(array.dtype, np.integer) for array in (label, predicted)):
        raise ValueError(f"label is {label.dtype} and predicted {predicted.dtype}, not integers")
    found = Predictions(label, predicted)
    if abs(found.accuracy - accuracy) > 1e-4:
        raise ValueError(
            f"its accuracy is {found.accuracy:.4f}, that of result.json {accuracy:.4f}: "
            "of another test"
        )
    return found


def _match(record: Mapping[str, Any]) -> Match | None:
    """The budget; nothing also for a network that is matched to itself."""
    if not _object(record, "match") or record["match"].get("to") == record["conv"]:
        return None
    quantity, to = (_get(record, "match", key) for key in ("quantity", "to"))
    target, achieved, residual = (
        _number(record, "match", key) for key in ("target", "achieved", "residual")
    )
    if not quantity or not to or target is None or achieved is None or residual is None:
        raise ValueError(f"match is {json.dumps(record['match'])}, which lacks something")
    width_mult = _number(record, "config", "model", "width_mult")
    return Match(str(quantity), str(to), width_mult, target, achieved, residual)


def _setting(record: Mapping[str, Any]) -> dict[str, str]:
    groups = ("model", "recipe", "trainer", "ckpt_path", "train", "test")
    config = {key: _get(record, "config", key) for key in groups}
    config["callbacks"] = {"early_stopping": _get(record, "config", "callbacks", "early_stopping")}
    config["data"] = {key: _get(record, "data", key) for key in _DATA}
    config["data"]["batch_size"] = _get(record, "config", "data", "batch_size")
    setting = {
        key: value
        for key, value in _flatten(config)
        if key not in _HARMLESS | _IDENTITY and value != "null"
    }
    if precision := record.get("precision"):  # what `auto` became
        setting["trainer.precision"] = str(precision)
    # Found for each variant, in the same space with the same effort.
    for key, ends in _object(record, "search", "space").items():
        setting[f"recipe.{key}"] = "searched in " + json.dumps(ends)
    for key in ("trials", "epochs"):
        if value := _number(record, "search", key):
            setting[f"hparams_search.{key}"] = f"{value:g}"
    if size := _list(record, "input_size"):
        setting["input_size"] = "x".join(map(str, size))
    return setting


def _machine(record: Mapping[str, Any]) -> str:
    """The device that trained, what feeds it, and what the steps were made of."""
    gpu = None if record.get("device") == "cpu" else _get(record, "machine", "gpu")
    threads = _integer(record, "machine", "threads")
    parts = (
        gpu,
        _get(record, "machine", "cpu"),
        None if threads is None else _count(threads, "thread"),
        "compiled steps" if record.get("compiled") else None,
        "this project's kernels" if record.get("own_kernels") else None,
    )
    return ", ".join(str(part) for part in parts if part is not None)


def _latencies(record: Mapping[str, Any]) -> Iterator[tuple[Conditions, Percentiles]]:
    for entry in _list(record, "latency"):
        p50 = _number(entry, "p50_ms")
        if p50 is not None:
            conditions = Conditions(**{f.name: entry.get(f.name) for f in fields(Conditions)})
            p10, p90 = _number(entry, "p10_ms"), _number(entry, "p90_ms")
            yield conditions, Percentiles(p50, p10, p90, entry.get("stable"))


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of dotted names and JSON texts, sorted."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _flatten(value[key], f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _get(record: Any, *keys: str) -> Any:
    for key in keys:
        if record is None:
            return None
        if not isinstance(record, dict):
            raise ValueError(f"{key!r} is looked for in {record!r}, which is not an object")
        record = record.get(key)
    return record


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    value = record.get(key) or []
    if not isinstance(value, list):
        raise ValueError(f"{key} is {value!r}, not a list")
    return value


def _object(record: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    value = _get(record, *keys) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{'.'.join(keys)} is {value!r}, not an object")
    return value


def _number(record: Any, *keys: str) -> float | None:
    value = _get(record, *keys)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{'.'.join(keys)} is {value!r}, not a number")
    return value if math.isfinite(value) else None


def _integer(record: Any, *keys: str) -> int | None:
    value = _number(record, *keys)
    return None if value is None else int(value)


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
