"""From rows of a table, each a picture with the name of its class and its split, to a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dwsep_zoo.data.splits import SPLITS, Images, Labelled
from dwsep_zoo.data.store import Store
from dwsep_zoo.errors import UserError


class Row(NamedTuple):
    """A picture.

    Attributes:
        name: in the store.
        label: name of its class.
        split: train, val or test.
        where: the row, as messages name it.
    """

    name: str
    label: str
    split: str
    where: str


def labelled(what: object, rows: Iterable[Row], store: Store) -> Labelled:
    """Classes are numbered in alphabetical order or, if all are whole numbers, by size.

    Args:
        what: holds the rows, as messages name it.
        rows: in the order of the splits' images.
        store: has the pictures.

    Raises:
        UserError: for a class without training images, or fewer than two classes.
    """
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row.split, []).append(row)
    names = sort_classes({row.label for row in parts.get("train", ())})
    if len(names) < 2:
        shown = f"the single class {names[0]!r}" if names else "no training images"
        raise UserError(f"{what} has {shown}")
    number = {name: i for i, name in enumerate(names)}
    splits = {}
    for split in SPLITS:
        if split not in parts:
            continue
        for row in parts[split]:
            if row.label not in number:
                raise UserError(f"{row.where}: the class {row.label!r} has no training images")
        labels = np.array([number[row.label] for row in parts[split]], dtype=np.int64)
        splits[split] = Images([row.name for row in parts[split]], labels)
    return Labelled(names, splits, store)


def sort_classes(names: Iterable[str]) -> list[str]:
    """In alphabetical order or, if all are whole numbers, by size."""
    found: Sequence[str] = sorted(names)
    return sorted(found, key=int) if all(name.isdecimal() for name in found) else list(found)
