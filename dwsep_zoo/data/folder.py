"""Folders of pictures: one folder a class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dwsep_zoo.data.listing import find_pictures, say_others, sort_out, split_of, subfolders
from dwsep_zoo.data.source import FILES, FOLDERS, existing_root
from dwsep_zoo.data.splits import SPLITS, Images, Labelled
from dwsep_zoo.data.store import Files
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.data_settings import DataSettings

log = logging.getLogger("dwsep_zoo")


class Folder:
    """The user's pictures below ``data.root``, see :func:`list_folder`."""

    options = FILES | FOLDERS

    def __init__(self, settings: DataSettings, data_dir: Path):
        root = existing_root(settings)
        if root is None:
            raise UserError(f"data={settings.name} needs data.root=, the folder of the pictures")
        self.root = root
        self.given = {k: v for k, v in settings.folders.plain().items() if isinstance(v, str)}

    def prepare(self) -> None:
        """There is nothing to do."""

    def load(self) -> Labelled:
        """List the pictures."""
        return list_folder(self.root, given=self.given)


def list_folder(
    root: Path,
    class_names: Mapping[str, str] | None = None,
    *,
    given: Mapping[str, str] | None = None,
) -> Labelled:
    """List pictures in ``root/<class>/``, or in ``root/train/<class>/`` and ``val``, ``test``.

    Other spellings of these three are known, see :func:`~dwsep_zoo.data.listing.split_of`. The
    folder of a class may have subfolders. Classes are named after their folders and numbered in
    alphabetical order. Hidden files and folders are ignored; other files that are not pictures are
    counted in a warning.

    Args:
        root: the folder.
        class_names: other names for some folders of classes.
        given: the folders of splits, by the splits' names, if the user names them.

    Raises:
        UserError: if there are no pictures, a class has none to train on, there is only one class,
            all classes are called like splits, the splits have different classes, or a folder
            cannot be listed.
    """
    folders = _given_folders(root, given) if given else _split_folders(root)
    train = root / folders["train"]
    classes = subfolders(train)
    if not classes:
        raise UserError(
            f"{train} has no folders with pictures; expected <class>/*.jpg or train/<class>/*.jpg"
        )
    for folder in folders.values():
        _check_classes(root / folder, classes)
    _check_text(train, classes)
    if len(classes) < 2:
        raise UserError(f"{train} has the single class {classes[0]!r}")
    splits = {}
    others: Counter[str] = Counter()
    for split, folder in folders.items():
        splits[split] = list_classes(root, folder, classes, others, needed=split == "train")
        _warn_of_loose(root / folder)
    say_others(root, others)
    renamed = class_names or {}
    return Labelled([renamed.get(name, name) for name in classes], splits, Files(root))


def list_classes(
    root: Path, folder: str, classes: Sequence[str], others: Counter[str], *, needed: bool
) -> Images:
    """The pictures of one split.

    Args:
        root: names are relative to it.
        folder: of the split, below it.
        classes: folders below that.
        others: counts files that are no pictures.
        needed: every class must have some.
    """
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        relative = Path(folder, name).as_posix()
        found = find_pictures(root / relative)
        others.update(found.others)
        if needed and not found.names:
            left = f", but {found.others.total()} other files" if found.others else ""
            raise UserError(f"{root / relative} has no pictures{left}")
        names += [f"{relative}/{picture}" for picture in found.names]
        labels += [label] * len(found.names)
    return Images(names, np.array(labels, dtype=np.int64))


def _given_folders(root: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The folders that the user names."""
    if "train" not in given:
        raise UserError("data.folders.val and data.folders.test need data.folders.train")
    for split, name in given.items():
        if not (root / name).is_dir():
            raise UserError(
                f"data.folders.{split}={name}: {root} has no such folder; it has "
                f"{', '.join(subfolders(root)) or 'none'}"
            )
    return {split: given[split] for split in SPLITS if split in given}


def _split_folders(root: Path) -> dict[str, str]:
    """The folder of each split that there is; a folder without splits is all ``train``."""
    inside = subfolders(root)
    alike: dict[str, list[str]] = {}
    for name in inside:
        if (split := split_of(name)) and subfolders(root / name):
            alike.setdefault(split, []).append(name)
    if "train" in alike:
        for names in alike.values():
            if len(names) > 1:
                raise UserError(
                    f"{root} has {' and '.join(names)}; data.folders.train=, data.folders.val= and "
                    "data.folders.test= name the folders of the splits"
                )
        folders = {split: names[0] for split, names in alike.items()}
        _check_flat(root, inside, folders)
        if left := sorted(set(inside) - set(folders.values())):
            log.warning("%s: folders left out beside those of the splits: %s", root, _some(left))
        return {s: _innermost(root, folders[s], s) for s in SPLITS if s in folders}
    if inside and (len(alike) > 1 or all(map(split_of, inside))):
        raise UserError(
            f"{root} has {_some(inside)} but no folder train with folders of classes; "
            "data.folders.train= names it, and data.folders.train=. says that these are classes"
        )
    return {"train": "."}


def _check_flat(root: Path, inside: Sequence[str], folders: Mapping[str, str]) -> None:
    """Look for splits whose pictures are in no folders of classes.

    Raises:
        UserError: for validation pictures; those of a test often have no labels.
    """
    for name in inside:
        split = split_of(name)
        if split in (None, "train", *folders) or not find_pictures(root / name).names:
            continue
        flat = f"{root / name} has pictures but no folders of classes"
        if split == "val":
            named = " ".join(f"data.folders.{part}={folder}" for part, folder in folders.items())
            raise UserError(
                f"{flat}; sort them into some, as in {root / folders['train']}, or set {named} to "
                "leave it out"
            )
        log.warning("%s and is left out", flat)


def _innermost(root: Path, folder: str, split: str) -> str:
    """``train/train`` instead of ``train`` that holds it alone, as some archives do."""
    while len(inside := subfolders(root / folder)) == 1 and split_of(inside[0]) == split:
        folder = f"{folder}/{inside[0]}"
    return folder


def _check_classes(folder: Path, classes: Sequence[str]) -> None:
    here = subfolders(folder)
    odd = sorted(set(here) ^ set(classes))
    if odd:
        which = "not in train" if odd[0] in here else "only in train"
        raise UserError(
            f"{folder} has {len(here)} classes, train has {len(classes)}: {odd[0]!r} is {which}"
        )


def _check_text(folder: Path, classes: Sequence[str]) -> None:
    """Raises UserError for a name in another encoding than UTF-8, which no record can hold."""
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{folder}: the name of a class, {os.fsencode(name)!r}, is not in UTF-8; rename "
                "its folder"
            ) from error


def _warn_of_loose(folder: Path) -> None:
    """Pictures beside the folders of classes belong to none."""
    files = [path.name for path in folder.iterdir() if path.is_file()]
    if loose := sort_out(files, Counter()):
        log.warning("%s: pictures left out, as they are in no class: %d", folder, len(loose))


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
