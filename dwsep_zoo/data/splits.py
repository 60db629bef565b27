"""Choice of the images for training, validation and test.

Every choice depends on a hash of a seed and the image's name. It is therefore the same on every
machine and with every version of every library, and a new image in a folder moves no other one.
The seed of the run has no influence: all runs of a comparison share their splits.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dwsep_zoo.data.store import Store
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.schema.data_settings import SubsetSettings

log = logging.getLogger("dwsep_zoo")

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        names: unique: a path relative to the root, or an index.
        labels: (n,) int64.
        pixels: (n, H, W, C) uint8, or ``None`` while they are files.
    """

    names: list[str]
    labels: np.ndarray
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: np.ndarray) -> Images:
        """The images at the given positions, in the given order."""
        pixels = None if self.pixels is None else self.pixels[indices]
        return Images([self.names[i] for i in indices], self.labels[indices], pixels)

    def by_class(self) -> dict[int, np.ndarray]:
        """Positions of the images of each label."""
        order = np.argsort(self.labels, kind="stable")
        labels, first = np.unique(self.labels[order], return_index=True)
        groups = np.split(order, first[1:])
        return {int(label): group for label, group in zip(labels, groups, strict=True)}


@dataclass(frozen=True)
class Labelled:
    """A data set: class names, and images under ``train``, ``val``, ``test``.

    Attributes:
        class_names: in the order of the labels.
        splits: ``train`` alone if the set has no splits of its own.
        store: has the pictures of images without pixels.
        statistics: published mean and deviation of each channel, of values in 0-1.
        interpolation: with which the pixels were resized.
        packed: name of the data set whose pictures were packed into these shards.
    """

    class_names: list[str]
    splits: dict[str, Images]
    store: Store | None = None
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    interpolation: str | None = None
    packed: str | None = None


def together(given: Labelled) -> Labelled:
    """The set with all of its images as its test, and as its other splits."""
    parts = list(given.splits.values())
    pixels = [part.pixels for part in parts if part.pixels is not None]
    names = [f"{split}/{n}" if pixels else n for split, p in given.splits.items() for n in p.names]
    labels = np.concatenate([part.labels for part in parts])
    images = Images(names, labels, torch.cat(pixels) if pixels else None)
    return replace(given, splits=dict.fromkeys(SPLITS, images))


def make_splits(
    given: dict[str, Images], *, val_fraction: float, test_fraction: float | None, seed: int
) -> dict[str, Images]:
    """Make training, validation and test images from the given splits.

    A missing or empty split is held out from the training images, an equal part of every class. A
    set with train and val alone, such as ImageNet, is tested on its val: choosing the best epoch
    uses the validation images, and test images are used once, at the end.

    If every class has a single training image, none can be held out: the test images then serve
    as validation images too, and a warning says so.

    Raises:
        UserError: if no images would be left for the test.
    """
    splits = {name: images for name, images in given.items() if len(images) or name == "train"}
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    if "test" not in splits:
        if test_fraction is None:
            raise UserError("data.test_fraction must be set: no test images are given")
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


def is_subset(subset: SubsetSettings) -> bool:
    """Whether ``data.subset`` leaves anything out."""
    parts = (subset.num_classes, subset.classes, subset.images_per_class, subset.fraction)
    return any(value is not None for value in parts)


def select_classes(given: Labelled, subset: SubsetSettings) -> Labelled:
    """Drop the classes outside ``data.subset`` from all splits and renumber the labels.

    The network's outputs keep the order of the whole set.

    Raises:
        UserError: for a class that the set does not have, or more classes than it has.
    """
    if subset.num_classes is None and subset.classes is None:
        return given
    chosen = _chosen_classes(given.class_names, subset)
    number = np.full(len(given.class_names), -1)
    number[[given.class_names.index(name) for name in chosen]] = np.arange(len(chosen))
    splits = {}
    for name, images in given.splits.items():
        part = images.take(np.flatnonzero(number[images.labels] >= 0))
        splits[name] = Images(part.names, number[part.labels], part.pixels)
    return replace(given, class_names=chosen, splits=splits)


def _chosen_classes(class_names: list[str], subset: SubsetSettings) -> list[str]:
    if subset.classes is not None:
        chosen = {choose(str(n), class_names, "data.subset.classes") for n in subset.classes}
    else:
        count = subset.num_classes or 0
        if count > len(class_names):
            raise UserError(
                f"data.subset.num_classes={count}: there are {len(class_names)} classes"
            )
        key = f"classes-{subset.seed}"
        chosen = set(sorted(class_names, key=lambda n: _hash(key, n))[:count])
    return [name for name in class_names if name in chosen]


def thin(images: Images, subset: SubsetSettings, class_names: Sequence[str]) -> Images:
    """Drop training images, after the validation images are held out.

    Accuracies stay comparable between sizes, as validation and test images are never thinned.

    Raises:
        UserError: if a class has fewer than ``images_per_class``.
    """
    wanted = subset.images_per_class
    if wanted is None and subset.fraction is None:
        return images
    kept = []
    for label, positions in images.by_class().items():
        count = wanted or max(1, round((subset.fraction or 1.0) * len(positions)))
        if count > len(positions):
            raise UserError(
                f"data.subset.images_per_class={count}: class {class_names[label]!r} has "
                f"{len(positions)} training images"
            )
        kept.append(_drawn(images, positions, count, f"subset-{subset.seed}"))
    return images.take(np.sort(np.concatenate(kept)))


def fingerprint(
    class_names: list[str], splits: Mapping[str, Images], contents: Mapping[str, np.ndarray]
) -> str:
    """Checksum of the names and labels in each split, and of the bytes of their files."""
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for split, images in splits.items():
        digest.update(split.encode())
        digest.update("\0".join(images.names).encode("utf-8", "surrogateescape"))
        digest.update(images.labels.astype("<i8").tobytes())
        if split in contents:
            digest.update(contents[split].tobytes())
    return digest.hexdigest()


def _drawn(images: Images, positions: np.ndarray, count: int, key: str) -> np.ndarray:
    """The ``count`` of these positions whose names hash lowest."""
    return np.array(sorted(positions, key=lambda i: _hash(key, images.names[i]))[:count], dtype=int)


def _hash(key: str, name: str) -> bytes:
    return hashlib.sha256(f"{key}:{name}".encode("utf-8", "surrogateescape")).digest()
