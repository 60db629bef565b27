"""Tiny ImageNet: 200 classes of ImageNet at 64 x 64 pixels (Stanford CS231n, 2015)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from dwsep_zoo.data.download import extract, fetch
from dwsep_zoo.data.folder import list_classes
from dwsep_zoo.data.listing import subfolders
from dwsep_zoo.data.source import ARCHIVE, FILES, archive_root
from dwsep_zoo.data.splits import Images, Labelled
from dwsep_zoo.data.store import Files
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.data_settings import DataSettings

FOLDER = "tiny-imagenet-200"
MIRRORS = (
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "https://zenodo.org/records/10720917/files/tiny-imagenet-200.zip?download=1",
)
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


class TinyImagenet:
    """100,000 training pictures, and 10,000 whose labels are in a table; its test has no labels.

    ``root`` is the folder of the archive, where it is unpacked too, or the unpacked folder itself;
    ``None``: ``data_dir``.
    """

    options = FILES | ARCHIVE

    def __init__(self, settings: DataSettings, data_dir: Path):
        self.root, self.unpacked = archive_root(settings, data_dir)
        self.urls = (settings.url,) if settings.url else MIRRORS

    def prepare(self) -> None:
        """Download and unpack the archive if its folder is missing."""
        if not self._pictures().is_dir():
            archive = fetch(self.urls, self.root / f"{FOLDER}.zip", MD5)
            extract(archive, FOLDER, self.root)

    def load(self) -> Labelled:
        """List the pictures; their boxes are not used.

        Raises:
            UserError: if a table is missing or damaged.
        """
        root = self._pictures()
        classes = subfolders(root / "train")
        train = list_classes(root, "train", classes, Counter(), needed=True)
        words = dict(_table(root / "words.txt", 2))
        names = [words.get(wnid, wnid).split(",")[0] for wnid in classes]
        repeated = {name for name, count in Counter(names).items() if count > 1}
        class_names = [
            f"{name} {wnid}" if name in repeated else name
            for name, wnid in zip(names, classes, strict=True)
        ]
        return Labelled(class_names, {"train": train, "val": self._val(root, classes)}, Files(root))

    def _val(self, root: Path, classes: list[str]) -> Images:
        number = {wnid: label for label, wnid in enumerate(classes)}
        path = root / "val" / "val_annotations.txt"
        rows = [row for row in _table(path, 2) if row[1] in number]
        if not rows:
            raise UserError(f"{path} has no picture of a class in {root / 'train'}")
        labels = np.array([number[wnid] for _, wnid in rows], dtype=np.int64)
        return Images([f"val/images/{name}" for name, _ in rows], labels)

    def _pictures(self) -> Path:
        return self.root if self.unpacked else self.root / FOLDER


def _table(path: Path, columns: int) -> list[list[str]]:
    """The first columns of a table with tabs."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    rows = [line.split("\t")[:columns] for line in lines if line.strip()]
    if any(len(row) < columns for row in rows):
        raise UserError(f"{path}: a line has fewer than {columns} columns")
    return rows
