"""Which images are trained on, validated on and tested on.

Every choice among images is made by a hash of the seed and the image's name. It is therefore the
same on every machine and with every version of every library, and an image that is added to a
folder moves none of the others. The random state of the run has no part in it: all seeds and all
networks of a comparison see the same splits.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dwsep_zoo.data.options import at_least, check_keys, choose
from dwsep_zoo.errors import UserError

log = logging.getLogger("dwsep_zoo")

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        names: what identifies each: a path relative to the root, or an index.
        labels: (n,) int64.
        pixels: (n, H, W, C) uint8, or ``None`` while they are files.
    """

    names: list[str]
    labels: np.ndarray
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: np.ndarray) -> Images:
        """Those at the given positions, in the given order."""
        pixels = None if self.pixels is None else self.pixels[indices]
        return Images([self.names[i] for i in indices], self.labels[indices], pixels)

    def by_class(self) -> dict[int, np.ndarray]:
        """The positions of every label that occurs."""
        order = np.argsort(self.labels, kind="stable")
        labels, first = np.unique(self.labels[order], return_index=True)
        groups = np.split(order, first[1:])
        return {int(label): group for label, group in zip(labels, groups, strict=True)}


@dataclass(frozen=True)
class Labelled:
    """A data set as it is given: class names, and images under ``train``, ``val``, ``test``.

    One that nobody has split has ``train`` alone. Images without pixels are files below ``root``.
    """

    class_names: list[str]
    splits: dict[str, Images]
    root: Path | None = None


def make_splits(
    given: dict[str, Images], *, val_fraction: float, test_fraction: float, seed: int
) -> dict[str, Images]:
    """Train, validation and test images from those that are given.

    What is missing or empty is held out from the training images, an equal part of every class. A
    set that comes as train and val alone, as ImageNet does, is tested on its val: the test images
    are looked at once, at the end, and choosing the best epoch is a use of the validation images.

    A training set of one image a class can hold out nothing. Its validation images are then the
    test images, and a warning says so.

    Raises:
        UserError: when there would be no images to test on.
    """
    splits = {name: images for name, images in given.items() if len(images) or name == "train"}
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    if "test" not in splits:
        splits["train"], splits["test"] = hold_out(splits["train"], test_fraction, f"test-{seed}")
        val_fraction = min(0.5, val_fraction / (1 - test_fraction))
    if not len(splits["test"]):
        raise UserError(
            "every class has a single image, of which none can be held out for the test; "
            "add images, or put some into folders train/<class> and val/<class>"
        )
    if "val" not in splits:
        splits["train"], splits["val"] = hold_out(splits["train"], val_fraction, f"val-{seed}")
    if not len(splits["val"]):
        log.warning(
            "every class has a single training image, of which none can be held out: "
            "val/acc is measured on the test images"
        )
        splits["val"] = splits["test"]
    return {name: splits[name] for name in SPLITS}


def hold_out(images: Images, fraction: float, key: str) -> tuple[Images, Images]:
    """Split into (kept, held out).

    Every class gives the given fraction of its images, rounded, at least one, but never its last.
    """
    held = np.zeros(len(images), dtype=bool)
    for positions in images.by_class().values():
        count = min(len(positions) - 1, max(1, round(fraction * len(positions))))
        held[_drawn(images, positions, count, key)] = True
    return images.take(np.flatnonzero(~held)), images.take(np.flatnonzero(held))


@dataclass(frozen=True)
class Subset:
    """A part of a data set: fewer classes, fewer training images, or both.

    The classes are those of all splits. ``images_per_class`` and ``fraction`` thin the training
    images alone, after validation images are held out: accuracies stay comparable between sizes.

    Args:
        num_classes: as many classes, drawn with ``seed``.
        classes: these classes; the network's outputs keep the order of the whole set.
        images_per_class: exactly as many training images of every class.
        fraction: this part of the training images of every class, at least one.
        seed: of the draws.
    """

    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    images_per_class: int | None = None
    fraction: float | None = None
    seed: int = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> Subset:
        """Make one from ``data.subset.*``, with every value checked that can be without the images.

        Raises:
            UserError: naming the key and the value.
        """
        values = check_keys("data.subset", options or {}, tuple(cls.__dataclass_fields__))
        for one, other in (("num_classes", "classes"), ("images_per_class", "fraction")):
            if one in values and other in values:
                raise UserError(f"data.subset.{one} and data.subset.{other} exclude each other")
        if "num_classes" in values:
            at_least("data.subset.num_classes", values["num_classes"], 2)
        if "classes" in values:
            names = values["classes"]
            names = [names] if isinstance(names, (str, int)) else names
            values["classes"] = tuple(dict.fromkeys(str(name) for name in names))
            if len(values["classes"]) < 2:
                raise UserError(
                    f"data.subset.classes={list(values['classes'])}: two classes are the least"
                )
        if "images_per_class" in values:
            at_least("data.subset.images_per_class", values["images_per_class"], 1)
        fraction = values.get("fraction", 1.0)
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
            raise UserError(f"data.subset.fraction must be a number; got {fraction!r}")
        if not 0 < fraction <= 1:
            raise UserError(
                f"data.subset.fraction must be greater than 0 and at most 1; got {fraction}"
            )
        return cls(**values)

    @property
    def active(self) -> bool:
        """Whether it leaves anything out."""
        return any(
            value is not None
            for value in (self.num_classes, self.classes, self.images_per_class, self.fraction)
        )

    def select_classes(self, given: Labelled) -> Labelled:
        """Drop the other classes and renumber the labels.

        Raises:
            UserError: for a class that the set does not have, or more classes than it has.
        """
        if self.num_classes is None and self.classes is None:
            return given
        chosen = self._classes(given.class_names)
        number = np.full(len(given.class_names), -1)
        number[[given.class_names.index(name) for name in chosen]] = np.arange(len(chosen))
        splits = {}
        for name, images in given.splits.items():
            part = images.take(np.flatnonzero(number[images.labels] >= 0))
            splits[name] = Images(part.names, number[part.labels], part.pixels)
        return Labelled(chosen, splits, given.root)

    def thin(self, images: Images, class_names: Sequence[str]) -> Images:
        """Drop training images.

        Raises:
            UserError: when a class has fewer than ``images_per_class``.
        """
        if self.images_per_class is None and self.fraction is None:
            return images
        kept = []
        for label, positions in images.by_class().items():
            if self.images_per_class is not None:
                count = self.images_per_class
                if count > len(positions):
                    raise UserError(
                        f"data.subset.images_per_class={count}: class {class_names[label]!r} has "
                        f"{len(positions)} training images"
                    )
            else:
                count = max(1, round((self.fraction or 1.0) * len(positions)))
            kept.append(_drawn(images, positions, count, f"subset-{self.seed}"))
        return images.take(np.sort(np.concatenate(kept)))

    def _classes(self, class_names: list[str]) -> list[str]:
        if self.classes is not None:
            chosen = {choose(name, class_names, "data.subset.classes") for name in self.classes}
        else:
            assert self.num_classes is not None
            if self.num_classes > len(class_names):
                raise UserError(
                    f"data.subset.num_classes={self.num_classes}: there are {len(class_names)} "
                    "classes"
                )
            key = f"classes-{self.seed}"
            chosen = set(sorted(class_names, key=lambda n: _hash(key, n))[: self.num_classes])
        return [name for name in class_names if name in chosen]


def _drawn(images: Images, positions: np.ndarray, count: int, key: str) -> np.ndarray:
    """The ``count`` of these positions whose names hash lowest."""
    return np.array(sorted(positions, key=lambda i: _hash(key, images.names[i]))[:count], dtype=int)


def _hash(key: str, name: str) -> bytes:
    return hashlib.sha256(f"{key}:{name}".encode("utf-8", "surrogateescape")).digest()
