"""Folders of pictures: one folder a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dwsep_zoo.data.pictures import find_pictures, leads_back
from dwsep_zoo.data.source import ALL, existing_root
from dwsep_zoo.data.splits import Images, Labelled
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.settings import DataSettings

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class Folder:
    """The user's pictures below ``data.root``, see :func:`list_folder`."""

    options = ALL - {"url", "size"}

    def __init__(self, settings: DataSettings, data_dir: Path):
        root = existing_root(settings)
        if root is None:
            raise UserError(f"data={settings.name} needs data.root=, the folder of the pictures")
        self.root = root

    def prepare(self) -> None:
        """There is nothing to do."""

    def load(self) -> Labelled:
        """List the pictures."""
        return list_folder(self.root)


def list_folder(root: Path, class_names: Mapping[str, str] | None = None) -> Labelled:
    """List pictures in ``root/<class>/``, or in ``root/train/<class>/`` and ``val``, ``test``.

    The folder of a class may have subfolders. Classes are named after their folders and numbered in
    alphabetical order. Hidden files and folders are ignored.

    Args:
        root: the folder.
        class_names: other names for some folders of classes.

    Raises:
        UserError: if there are no pictures, a class has none to train on, there is only one class,
            the splits have different classes, or a folder cannot be listed.
    """
    folders = _split_folders(root)
    train = root / folders["train"]
    classes = _subfolders(train)
    if not classes:
        raise UserError(
            f"{train} has no folders with pictures; expected <class>/*.jpg or train/<class>/*.jpg"
        )
    for folder in folders.values():
        _check_classes(root / folder, classes)
    if len(classes) < 2:
        raise UserError(f"{train} has the single class {classes[0]!r}")
    splits = {}
    for split, folder in folders.items():
        splits[split] = _list(root, folder, classes, needed=split == "train")
    renamed = class_names or {}
    return Labelled([renamed.get(name, name) for name in classes], splits, root)


def _split_folders(root: Path) -> dict[str, str]:
    """The folder of each given split; a folder without splits is all ``train``."""
    found = {
        split: name
        for split, names in SPLIT_FOLDERS.items()
        for name in reversed(names)
        if (root / name).is_dir() and _subfolders(root / name)
    }
    if "train" in found:
        return found
    if found and set(found.values()) == set(_subfolders(root)):
        raise UserError(f"{root} has {', '.join(found.values())} but no folder train")
    return {"train": "."}


def _check_classes(folder: Path, classes: Sequence[str]) -> None:
    here = _subfolders(folder)
    odd = sorted(set(here) ^ set(classes))
    if odd:
        which = "not in train" if odd[0] in here else "only in train"
        raise UserError(
            f"{folder} has {len(here)} classes, train has {len(classes)}: {odd[0]!r} is {which}"
        )


def _list(root: Path, folder: str, classes: Sequence[str], *, needed: bool) -> Images:
    """The pictures of one split; ``needed``: every class must have some."""
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        relative = Path(folder, name).as_posix()
        found = find_pictures(root / relative)
        if needed and not found:
            raise UserError(f"{root / relative} has no pictures")
        names += [f"{relative}/{picture}" for picture in found]
        labels += [label] * len(found)
    return Images(names, np.array(labels, dtype=np.int64))


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(
            path.name
            for path in folder.iterdir()
            if path.is_dir() and path.name[0] != "." and not leads_back(path, folder)
        )
    except OSError as error:
        raise UserError(f"cannot list {error.filename or folder}: {error.strerror}") from error
