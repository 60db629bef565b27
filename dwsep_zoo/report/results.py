"""Reading the folders of runs: ``result.json``, ``metrics.csv`` and ``predictions.npz``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from dwsep_zoo.errors import UserError
from dwsep_zoo.report.labels import general
from dwsep_zoo.report.predictions import FILE_NAME as PREDICTIONS
from dwsep_zoo.report.predictions import Predictions, read_predictions
from dwsep_zoo.schema.measures import TEST_ACC
from dwsep_zoo.schema.record import FILE_NAME, RunRecord, read_record
from dwsep_zoo.schema.sweep import FILE_NAME as PLAN
from dwsep_zoo.schema.sweep import read_plan

T = TypeVar("T")

# Parts of the settings and of the data's record that bear on accuracy or training time: two runs of
# one table agree on them, keys of newer versions included.
_BINDING = (
    *("model", "recipe", "trainer", "ckpt_path", "train", "test"),
    *("callbacks.early_stopping", "data.batch_size", "data.sampler"),
)
_DATA = (
    *("name", "fingerprint", "interpolation", "crop_pct", "background", "mean", "std"),
    "augment",
)
# Keys of those parts that may differ.
_FREE = {
    "model.name",
    "model.width_mult",
    "model.output_stride",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.enable_checkpointing",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    "recipe.epochs",  # trainer.max_epochs counts
}


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Attributes:
        folder: where its ``result.json`` lies.
        epochs: the rows of ``metrics.csv`` (epoch, train/loss, train/acc, val/loss, ...), without
            empty cells.
        predictions: from ``predictions.npz``; ``None`` if there is none.
    """

    folder: Path
    record: RunRecord
    epochs: tuple[Mapping[str, float], ...] = ()
    predictions: Predictions | None = None

    @property
    def name(self) -> str:
        return self.record.name or self.folder.name

    @property
    def model(self) -> str:
        return self.record.model

    @property
    def conv(self) -> str:
        return self.record.conv

    @property
    def error(self) -> str | None:
        """Why it did not finish, in one line."""
        return _one_line(self.record.error) if self.record.error else None

    @cached_property
    def conv_options(self) -> tuple[tuple[str, str], ...]:
        return tuple(_flatten(self.record.conv_options))

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(map(str, self.record.tags))

    @cached_property
    def form(self) -> str:
        """Format and precision of an exported file; empty for a run."""
        words = [self.record.artefact.get(key) for key in ("format", "precision")]
        making = self.record.artefact.get("quantisation")
        for key, value in making.items() if isinstance(making, dict) else ():
            named = isinstance(value, int | float)  # a flag or a number says little without its key
            words.append(key if value is True else f"{key} {value}" if named and value else value)
        return " ".join(str(word) for word in words if word)

    @cached_property
    def taught(self) -> str:
        """The teacher, as far as it differs from the network, and how it taught; empty: none."""
        found = self.record.teacher
        if found is None:
            return ""
        width = general(self.record.width_mult)
        name = found.name.removeprefix(f"{self.model} ").removesuffix(f" width {width}")
        numbers = {"T": found.temperature, "features": found.features}
        how = [
            f"{found.kind} {found.weight:g}",
            *(f"{k} {v:g}" for k, v in numbers.items() if v),
        ]
        return f"{name} ({', '.join(how)})"

    @property
    def teacher(self) -> tuple[str, ...]:
        """The name of the teacher, and the kind of lesson; empty: none."""
        found = self.record.teacher
        return tuple(word for word in (found.name, found.kind) if word) if found else ()

    @property
    def accuracy(self) -> float | None:
        """On the test set, 0-1."""
        return TEST_ACC.value(self.record)

    @property
    def width_given(self) -> float | None:
        """The width before it was solved for."""
        width = self.record.configured("model.width_mult")
        return width if isinstance(width, (int, float)) else None

    @property
    def searched(self) -> tuple[tuple[str, float], ...]:
        """Recipe values that a search found for this variant."""
        best = self.record.search.best if self.record.search else {}
        return tuple((key, value) for key, value in sorted(best.items()) if value is not None)

    @cached_property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """Terms of a fair comparison (data, input size, recipe, epochs, ...) as names and texts."""
        record, data = self.record, self.record.data.plain()
        parts: dict[str, JsonValue] = {key: record.configured(key) for key in _BINDING}
        parts |= {f"data.{key}": data.get(key) for key in _DATA}
        parts["trainer.precision"] = record.precision  # the resolved value of `auto`
        parts["input_size"] = "x".join(map(str, record.input_size)) or None
        if search := record.search:  # for each variant, in the same space with the same effort
            for key, ends in search.space.items():
                parts[f"recipe.{key}"] = f"searched in {json.dumps(ends)}"
            parts["hparams_search.trials"] = search.trials or None
            parts["hparams_search.epochs"] = search.epochs or None
        pairs = (pair for key, value in parts.items() for pair in _flatten(value, key))
        texts = {name: text for name, text in pairs if name not in _FREE and text != "null"}
        return tuple(sorted(texts.items()))

    @property
    def machine(self) -> str:
        """The device that trained, what feeds it, and the kind of its training steps."""
        record = self.record
        threads = record.machine.threads
        parts = (
            None if record.device == "cpu" else record.machine.gpu,
            record.machine.cpu,
            None if threads is None else f"{threads} thread" + ("" if threads == 1 else "s"),
            "compiled steps" if record.compiled else None,
            "this project's kernels" if record.own_kernels else None,
        )
        return ", ".join(part for part in parts if part is not None)


@dataclass(frozen=True)
class Problem:
    """A file that could not be read, and why."""

    path: Path
    reason: str


def load_results(paths: Iterable[Path | str]) -> tuple[list[Run], list[Problem]]:
    """Read every run at or below ``paths``, each once, sorted by path.

    A run that a sweep has planned and not begun is there too, with the status ``missing``.

    Returns:
        The runs, and the damaged files. A folder without a readable ``result.json`` is no run; any
        other damaged file is left out of its run.

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

    for file in _find_all(folders, FILE_NAME):
        record = attempt(read_record, file)
        if record is None:
            continue
        epochs = attempt(_read_epochs, file.with_name("metrics.csv"))
        read = partial(_read_predictions, TEST_ACC.value(record))
        predictions = attempt(read, file.with_name(PREDICTIONS))
        runs.append(Run(file.parent, record, epochs or (), predictions))
    for file in _find_all(folders, PLAN):
        plan = attempt(lambda file: read_plan(file.parent), file)
        for job in plan.jobs if plan else ():
            folder = file.parent / job.folder
            if not (folder / FILE_NAME).exists():
                runs.append(Run(folder, job.record(file.parent)))
    if not runs and not problems:
        where = ", ".join(str(path) for path in folders)
        raise UserError(f"no {FILE_NAME} below {where}; a run writes it into its folder")
    return runs, problems


def _find_all(paths: Iterable[Path], name: str) -> list[Path]:
    """The files of a name, each once, sorted by path."""
    found = {file.resolve(): file for path in paths for file in _find(path, name)}
    return sorted(found.values())


def _find(path: Path, name: str) -> Iterator[Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist; name folders of runs, for example logs")
    if path.is_file():
        if path.name != FILE_NAME:
            raise UserError(f"{path} is neither a folder nor a {FILE_NAME}")
        if name == FILE_NAME:
            yield path
    else:
        yield from path.rglob(name)


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


def _read_predictions(accuracy: float | None, file: Path) -> Predictions | None:
    if accuracy is None or not file.exists():
        return None
    found = read_predictions(file)
    if abs(found.accuracy - accuracy) > 1e-4:
        raise ValueError(f"its accuracy is {found.accuracy:.4f}, that of the record {accuracy:.4f}")
    return found


def _flatten(value: JsonValue, name: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of dotted names and JSON texts, sorted."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _flatten(value[key], f"{name}.{key}" if name else key)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
