"""Data sets of the library ``datasets``: a name on the Hugging Face hub, or local files."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dwsep_zoo.data.listing import split_in, split_of
from dwsep_zoo.data.rows import Row, labelled
from dwsep_zoo.data.source import FILES, HF
from dwsep_zoo.data.splits import SPLITS, Images, Labelled
from dwsep_zoo.data.store import Store
from dwsep_zoo.errors import UserError, choose, first_line, install_line
from dwsep_zoo.schema.data_settings import DataSettings

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("dwsep_zoo")

SAVED = ("dataset_dict.json", "dataset_info.json")
"""Files of a folder that ``save_to_disk`` wrote."""
UNKNOWN = -1
"""Label of pictures whose class is not published."""
LABELS = ("label", "labels", "class", "target")
"""Names of columns of classes that are plain numbers or texts."""


class HuggingFace:
    """``data.hf``: ``owner/name`` on the hub, ``owner/name:configuration``, or a local place.

    A local place is a file or folder of parquet, or a folder that ``save_to_disk`` wrote. The
    columns of images and of classes are found by their types, or named by ``data.columns.path`` and
    ``data.columns.label``. Pictures stay encoded in files that are mapped into memory, and are
    decoded as those of folders are.
    """

    options = FILES | HF

    def __init__(self, settings: DataSettings, data_dir: Path):
        if settings.hf is None:
            raise UserError(
                f"data={settings.name} needs data.hf=: a name on the Hugging Face hub, or a file "
                "or folder of parquet"
            )
        if importlib.util.find_spec("datasets") is None:
            raise UserError(
                f"data={settings.name} needs the package datasets: {install_line('hf')}"
            )
        self.what = settings.hf
        self.path = Path(os.path.expanduser(settings.hf))
        if settings.hf.startswith(("/", ".", "~")) and not self.path.exists():
            raise UserError(f"data.hf={settings.hf}: there is no such file or folder")
        self.cache = data_dir / "huggingface"
        self.columns = (settings.columns.path, settings.columns.label)

    def prepare(self) -> None:
        """Download what is missing."""
        self._read()

    def load(self) -> Labelled:
        """Find the columns, and read the classes."""
        from datasets import ClassLabel, Value

        parts = {}
        for name, part in self._read().items():
            split = split_of(name)
            if split is None:
                log.warning("%s: the split %r is left out", self.what, name)
            elif split in parts:
                raise UserError(f"data.hf={self.what} has two splits of the kind {split!r}")
            else:
                parts[split] = part
        if "train" not in parts:
            raise UserError(f"data.hf={self.what} has no training split")
        image, label = self._columns(parts["train"])
        store = _Arrow(
            self.path if self.path.exists() else self.cache / self.what, self.what, parts, image
        )
        kind = parts["train"].features[label]
        if not isinstance(kind, ClassLabel | Value):
            raise UserError(
                f"data.hf={self.what}: column {label!r} holds {type(kind).__name__}, not one class "
                "a row; data.columns.label= names another column"
            )
        values = {}
        for split, part in parts.items():
            found = _values(part, label)
            if split != "train" and (found == UNKNOWN).all():
                log.warning("%s: the split %s has no labels and is left out", self.what, split)
            else:
                values[split] = found
        if not isinstance(kind, ClassLabel):
            return labelled(f"data.hf={self.what}", _rows(self.what, values), store)
        splits = {}
        for split in SPLITS:
            if split in values:
                labels = values[split].astype(np.int64)
                if labels.min() < 0 or labels.max() >= len(kind.names):
                    i = int(np.flatnonzero((labels < 0) | (labels >= len(kind.names)))[0])
                    raise UserError(
                        f"data.hf={self.what}: {split}/{i} has the label {labels[i]}; there are "
                        f"{len(kind.names)} classes"
                    )
                names = [f"{split}/{i}" for i in range(len(labels))]
                splits[split] = Images(names, labels)
        return Labelled(list(kind.names), splits, store)

    def _read(self) -> Mapping[str, Dataset]:
        """The splits by their names."""
        import datasets

        datasets.disable_progress_bars()
        try:
            found = self._load(str(self.cache))
        # It raises errors of many kinds, also of the libraries that it uses.
        except Exception as error:
            raise UserError(f"cannot load data.hf={self.what}: {first_line(error)}") from error
        if isinstance(found, datasets.DatasetDict):
            return found
        return {"train": found}

    def _load(self, cache: str) -> Any:
        from datasets import load_dataset, load_from_disk

        path = self.path
        if not path.exists():
            name, _, configuration = self.what.partition(":")
            return load_dataset(name, configuration or None, cache_dir=cache)
        if any((path / name).is_file() for name in SAVED):
            return load_from_disk(str(path))
        files: dict[str, list[str]] = {}
        for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
            inner = file.relative_to(path).as_posix() if path.is_dir() else "train"
            files.setdefault(split_in(inner), []).append(str(file))
        if not files:
            raise UserError("it has no *.parquet and was not written by save_to_disk")
        return load_dataset("parquet", data_files=files, cache_dir=cache)

    def _columns(self, part: Dataset) -> tuple[str, str]:
        """Names of the columns of pictures and of classes."""
        from datasets import ClassLabel, Image

        features = part.features
        images = [name for name, kind in features.items() if isinstance(kind, Image)]
        images += [name for name, kind in features.items() if _has_bytes(kind)]
        labels = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
        if not labels:
            labels = [name for name in LABELS if name in features]
        found = []
        for key, own, candidates in zip(
            ("path", "label"), self.columns, (images, labels), strict=True
        ):
            if own is not None:
                found.append(choose(own, features, f"data.columns.{key}"))
            elif len(candidates) == 1:
                found.append(candidates[0])
            else:
                kind = "pictures" if key == "path" else "classes"
                shown = (
                    f"columns of {kind}: {', '.join(candidates)}"
                    if candidates
                    else (f"no column of {kind}; columns: {', '.join(features)}")
                )
                raise UserError(f"data.hf={self.what} has {shown}; set data.columns.{key}=")
        return found[0], found[1]


class _Arrow(Store):
    """Pictures in a column of Arrow tables, ``split/row``."""

    def __init__(self, root: Path, what: str, parts: Mapping[str, Dataset], image: str):
        super().__init__(root)
        self.what = what
        # As Arrow's own tables, in which pictures are not decoded.
        self.parts = {
            split: part.select_columns([image]).with_format("arrow")
            for split, part in parts.items()
        }
        self.states = {split: _state(part) for split, part in parts.items()}

    def where(self, name: str) -> str:
        return f"{self.what}: {name}"

    def content(self, name: str) -> io.BytesIO | Path:
        split, row = name.split("/")
        found = self.parts[split][int(row)].column(0)[0].as_py() or {}
        if found.get("bytes"):
            return io.BytesIO(found["bytes"])
        if found.get("path"):
            return Path(found["path"])
        raise UserError(f"cannot read the picture {self.where(name)}: it is empty")

    def state(self, name: str) -> str:
        return f"{name}\0{self.states[name.split('/')[0]]}"


def _state(part: Dataset) -> str:
    """A text that changes with the files of a split."""
    files = [os.stat(file["filename"]) for file in part.cache_files]
    times = [f"{file.st_size} {file.st_mtime_ns}" for file in files]
    return "\0".join([part._fingerprint, *times])


def _has_bytes(kind: object) -> bool:
    """Whether a column holds encoded pictures without the name of their type."""
    return isinstance(kind, Mapping) and "bytes" in kind


def _values(part: Dataset, label: str) -> np.ndarray:
    """The column of classes."""
    table = part.select_columns([label]).with_format("arrow")[:]
    column = table.column(0)
    if column.null_count:
        raise UserError(f"column {label!r} has {column.null_count} rows without a class")
    return np.asarray(column.to_numpy())


def _rows(what: str, values: Mapping[str, np.ndarray]) -> Iterator[Row]:
    for split, own in values.items():
        for i, label in enumerate(own.tolist()):
            yield Row(f"{split}/{i}", str(label), split, f"data.hf={what}: {split}/{i}")
