"""Reading ``result.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dwsep_zoo.errors import UserError

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
class Run:
    """One run; ``None`` where it has not measured something.

    Attributes:
        folder: where its ``result.json`` lies.
        status: finished, running, failed or interrupted.
        accuracy: on the test set, 0-1.
        macs: multiply-adds for one image of ``input_size``.
        latency: median milliseconds for one batch, by the conditions.
        train_s: seconds of training and validation.
        setting: what has to be equal for a fair comparison (data, input size, recipe, epochs, ...),
            as pairs of a name and a text.
        machine: what training time depends on besides the network.
        record: everything in ``result.json``.
    """

    folder: Path
    name: str
    status: str
    error: str | None
    model: str
    conv: str
    conv_options: tuple[tuple[str, str], ...]
    width_mult: float | None
    output_stride: int | None
    seed: int | None
    accuracy: float | None
    params: int | None
    macs: int | None
    input_size: tuple[int, ...]
    latency: Mapping[Conditions, float]
    train_s: float | None
    images_per_second: float | None
    setting: tuple[tuple[str, str], ...]
    machine: str
    finished: str
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """A file that could not be read, and why."""

    path: Path
    reason: str


def load_results(paths: Iterable[Path | str]) -> tuple[list[Run], list[Problem]]:
    """Read every ``result.json`` at or below ``paths``, each once, sorted by path.

    Returns:
        The runs, and the damaged files.

    Raises:
        UserError: if a path does not exist or no ``result.json`` is found.
    """
    folders = [Path(path) for path in paths]
    runs, problems = [], []
    for file in sorted({f.resolve(): f for folder in folders for f in _find(folder)}.values()):
        try:
            runs.append(_read(file))
        except (OSError, ValueError) as error:  # not readable, not UTF-8, not JSON, not ours
            problems.append(Problem(file, _one_line(error)))
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
    machine = [_get(record, "machine", key) for key in ("gpu", "cpu")]
    threads = _integer(record, "machine", "threads")
    machine.append(None if threads is None else _count(threads, "thread"))
    return Run(
        folder=file.parent,
        name=str(record.get("name") or file.parent.name),
        status=str(record.get("status", "unknown")),
        error=_one_line(record["error"]) if record.get("error") else None,
        model=record["model"],
        conv=record["conv"],
        conv_options=tuple(_flatten(_options(record))),
        width_mult=_number(record, "width_mult"),
        output_stride=_integer(record, "output_stride"),
        seed=_integer(record, "seed"),
        accuracy=_number(record, "metrics", "test/acc"),
        params=_integer(record, "params"),
        macs=_integer(record, "macs"),
        input_size=tuple(_list(record, "input_size")),
        latency=dict(_latencies(record)),
        train_s=_number(record, "time", "train_s"),
        images_per_second=_number(record, "images_per_second"),
        setting=tuple(sorted(_setting(record).items())),
        machine=", ".join(str(part) for part in machine if part is not None),
        finished=str(record.get("finished") or ""),
        record=record,
    )


def _setting(record: Mapping[str, Any]) -> dict[str, str]:
    groups = ("model", "recipe", "trainer", "ckpt_path")
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
    if size := _list(record, "input_size"):
        setting["input_size"] = "x".join(map(str, size))
    return setting


def _latencies(record: Mapping[str, Any]) -> Iterator[tuple[Conditions, float]]:
    for entry in _list(record, "latency"):
        p50 = _number(entry, "p50_ms")
        if p50 is not None:
            yield Conditions(**{f.name: entry.get(f.name) for f in fields(Conditions)}), p50


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


def _options(record: Mapping[str, Any]) -> dict[str, Any]:
    value = record.get("conv_options") or {}
    if not isinstance(value, dict):
        raise ValueError(f"conv_options is {value!r}, not an object")
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
