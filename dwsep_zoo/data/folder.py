"""Folders of pictures: one folder a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dwsep_zoo.data.module import ImageData
from dwsep_zoo.data.pictures import find_pictures
from dwsep_zoo.data.splits import Images, Labelled
from dwsep_zoo.errors import UserError

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class Folder:
    """Pictures in ``root/<class>/``, or in ``root/train/<class>/`` and ``val``, ``test`` beside.

    The pictures of a class may lie in folders of its folder. Classes have the names of their
    folders and are numbered in alphabetical order. Hidden files and folders do not count.

    Args:
        root: the folder.
        class_names: other names for some folders of classes.
    """

    def __init__(self, root: Path, class_names: Mapping[str, str] | None = None):
        self.root = root
        self.renamed = class_names or {}

    def prepare(self) -> None:
        """Raises UserError if there is no such folder."""
        if not self.root.is_dir():
            raise UserError(f"data.root={self.root}: there is no such folder")

    def load(self) -> Labelled:
        """List the pictures.

        Raises:
            UserError: if there are none, a class has none to train on, there is one class, or the
                splits have different classes.
        """
        folders = self._split_folders()
        classes = _subfolders(self.root / folders["train"])
        if not classes:
            raise UserError(
                f"{self.root / folders['train']} has no folders with pictures; "
                "expected <class>/*.jpg or train/<class>/*.jpg"
            )
        splits = {}
        for split, folder in folders.items():
            self._check_classes(self.root / folder, classes)
            splits[split] = self._list(folder, classes)
        for label, name in enumerate(classes):
            if not np.any(splits["train"].labels == label):
                raise UserError(f"{self.root / folders['train'] / name} has no pictures")
        if len(classes) < 2:
            raise UserError(f"{self.root / folders['train']} has the single class {classes[0]!r}")
        names = [self.renamed.get(name, name) for name in classes]
        return Labelled(names, splits, self.root)

    def _split_folders(self) -> dict[str, str]:
        """Where each given split lies; a folder without splits is all ``train``."""
        found = {
            split: name
            for split, names in SPLIT_FOLDERS.items()
            for name in reversed(names)
            if (self.root / name).is_dir() and _subfolders(self.root / name)
        }
        if "train" in found:
            return found
        if found and set(found.values()) == set(_subfolders(self.root)):
            raise UserError(f"{self.root} has {', '.join(found.values())} but no folder train")
        return {"train": "."}

    def _check_classes(self, folder: Path, classes: Sequence[str]) -> None:
        here = _subfolders(folder)
        odd = sorted(set(here) ^ set(classes))
        if odd:
            which = "not in train" if odd[0] in here else "only in train"
            raise UserError(
                f"{folder} has {len(here)} classes, train has {len(classes)}: {odd[0]!r} is {which}"
            )

    def _list(self, folder: str, classes: Sequence[str]) -> Images:
        names: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            relative = Path(folder, name)
            found = find_pictures(self.root / relative)
            names += [(relative / picture).as_posix() for picture in found]
            labels += [label] * len(found)
        return Images(names, np.array(labels, dtype=np.int64))


def create_folder(*, data_dir: str, root: str | None = None, **options: Any) -> ImageData:
    """``data=folder data.root=...``, with the options of :class:`ImageData`."""
    return ImageData("folder", Folder(_given("folder", root)), data_dir=data_dir, **options)


def create_imagenet(
    *,
    data_dir: str,
    root: str | None = None,
    image_size: int | None = 224,
    val_fraction: float = 0.02,
    **options: Any,
) -> ImageData:
    """``data=imagenet data.root=...``, a folder of wnids: as ``folder``, with other defaults."""
    source = Folder(_given("imagenet", root))
    return ImageData(
        "imagenet",
        source,
        image_size=image_size,
        val_fraction=val_fraction,
        data_dir=data_dir,
        **options,
    )


def _given(name: str, root: str | None) -> Path:
    if root is None:
        raise UserError(f"data={name} needs data.root=, the folder of the pictures")
    return Path(root).expanduser()


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
