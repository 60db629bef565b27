"""The data module that every data set is: splits, loaders, augmentation and their description."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
from torch import Tensor

from dwsep_zoo.data.augment import (
    ALTERNATE,
    RESIZED_IN_BATCHES,
    CachedCrop,
    CropFlip,
    middle,
    normalise,
)
from dwsep_zoo.data.cache import Cache, open_cache
from dwsep_zoo.data.loader import EpochBatches, EpochSampler, Loader, Reader
from dwsep_zoo.data.memory import MemoryReader, mean_and_std
from dwsep_zoo.data.options import at_least, check_keys, open_fraction
from dwsep_zoo.data.pictures import (
    FileReader,
    ResizedCrop,
    check_interpolation,
    decode,
    eval_transform,
    file_sizes,
    longest_side,
    resized_side,
)
from dwsep_zoo.data.splits import Images, Labelled, Subset, make_splits
from dwsep_zoo.errors import UserError
from dwsep_zoo.models.convnet import IMAGENET_MEAN, IMAGENET_STD

log = logging.getLogger("dwsep_zoo")

SMALL_PIXELS = 64
"""Pictures of at most this size are trained at their own size, and from memory."""
SMALL_BYTES = 4 * 2**30
"""They are decoded into memory without being asked only if they take less than this."""
LARGE_PIXELS = 224
VERIFY = "verify"
SIDES = ("cache_size", "image_size")
"""Of CachedCrop, which ``data.augment`` does not set."""


class Source(Protocol):
    """Where the images come from."""

    def prepare(self) -> None:
        """Download what is missing. One process of a machine calls it."""

    def load(self) -> Labelled:
        """The images, or their names."""


class ImageData(L.LightningDataModule):
    """A data set, ready for training.

    The loaders give ``(images, labels)`` as uint8, training from memory or a cache also random
    integers;
    :meth:`on_after_batch_transfer` makes of it augmented, normalised float32 images in the
    channels_last memory format on the device, and labels.

    Training batches are a function of (seed, epoch, number of the batch, rank of the process)
    alone. With several processes each has its share: as many training batches as all others; of the
    images to evaluate no image twice, so that some processes may have one more, and metrics have to
    be reduced by their counts, as torchmetrics does.

    ``num_classes``, ``in_chans``, ``image_size``, ``class_names``, ``mean``, ``std`` are known
    after ``prepare_data`` and ``setup``. ``batch_size`` (of each process) is lowered by ``setup``
    when there are fewer training images, with a warning.

    Args:
        name: of the data set.
        source: its images.
        seed: of the order and the augmentation.
        batch_size: images in a batch of each process.
        image_size: side in pixels; ``None``: that of the images in memory, or for files up to
            64 pixels their own, else 224.
        mean: per channel, of values in 0-1; ``None``: computed from the training images when they
            are in memory, else ImageNet's.
        std: as ``mean``.
        val_fraction: part of the training images that is held out where no split is given.
        test_fraction: the same for the test.
        split_seed: of the splits, apart from ``seed``: all runs of a comparison share them.
        subset: see :class:`Subset`.
        augment: see :class:`CropFlip` (in memory), :class:`ResizedCrop` (files) and
            :class:`CachedCrop` (cache).
        in_memory: decode files once, into memory; ``None``: if their own size is at most 64 pixels.
        num_workers: processes that decode files; ``None``: one a core, at most 16.
        interpolation: of resizing files.
        crop_pct: the part of the resized side of a file that evaluation looks at.
        cache: decode files once, into a memory map below ``data_dir``, see
            :mod:`dwsep_zoo.data.cache`; ``"verify"``: and read all of it to check it.
        cache_size: side of the squares in the map; ``None``: that to which evaluation resizes,
            so that it sees the same pixels as without a map.
        data_dir: where the map lies, in the folder ``cache``.

    Raises:
        UserError: for values that cannot be used.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        *,
        seed: int,
        batch_size: int = 128,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        subset: Mapping[str, Any] | None = None,
        augment: Mapping[str, Any] | None = None,
        in_memory: bool | None = None,
        num_workers: int | None = None,
        interpolation: str = "bicubic",
        crop_pct: float = 0.875,
        cache: bool | str = False,
        cache_size: int | None = None,
        data_dir: str = "data",
    ):
        super().__init__()
        self.name = name
        self.source = source
        self.seed = seed
        self.batch_size = at_least("data.batch_size", batch_size, 1)
        if image_size is not None:
            self.image_size = at_least("data.image_size", image_size, 1)
        if (mean is None) != (std is None):
            raise UserError("data.mean and data.std are set together or not at all")
        if mean is not None and std is not None:
            self.mean, self.std = _channels("data.mean", mean), _channels("data.std", std)
        self.val_fraction = open_fraction("data.val_fraction", val_fraction)
        self.test_fraction = open_fraction("data.test_fraction", test_fraction)
        self.split_seed = at_least("data.split_seed", split_seed, 0)
        self.subset = Subset.from_options(subset)
        self.augment_options = _augment_options(augment)
        if in_memory not in (None, True, False):
            raise UserError(f"data.in_memory must be true, false or null; got {in_memory!r}")
        self.in_memory = in_memory
        if num_workers is not None:
            at_least("data.num_workers", num_workers, 0)
        self.num_workers = num_workers
        self.interpolation = check_interpolation(interpolation)
        if not isinstance(crop_pct, (int, float)) or not 0 < crop_pct <= 1:
            raise UserError(f"data.crop_pct must be greater than 0 and at most 1; got {crop_pct!r}")
        self.crop_pct = float(crop_pct)
        if not isinstance(cache, bool) and cache != VERIFY:
            raise UserError(f"data.cache must be true, false or verify; got {cache!r}")
        if cache and in_memory:
            raise UserError("data.cache and data.in_memory exclude each other")
        if cache_size is not None:
            at_least("data.cache_size", cache_size, 1)
            if not cache:
                raise UserError(f"data.cache_size={cache_size} has no effect without data.cache")
        self.cache = cache
        self.cache_size = cache_size
        self.data_dir = Path(data_dir).expanduser()
        self.splits: dict[str, Images] = {}

    def prepare_data(self) -> None:
        """Download what is missing."""
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Choose the images and, if they are to live in memory, decode them.

        Raises:
            UserError: for a subset that does not exist, a picture that cannot be read, options of
                the augmentation that do not fit the images.
        """
        if self.splits:
            return
        given = self.subset.select_classes(self.source.load())
        if len(given.class_names) < 2:
            raise UserError(f"data={self.name} has the single class {given.class_names[0]!r}")
        splits = make_splits(
            given.splits,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.split_seed,
        )
        splits["train"] = self.subset.thin(splits["train"], given.class_names)
        self.class_names = given.class_names
        self.num_classes = len(given.class_names)
        self.root = given.root
        sizes = {}
        if given.root is not None:
            sizes = {name: file_sizes(given.root, images) for name, images in splits.items()}
        self.fingerprint = _fingerprint(self.class_names, splits, sizes)
        if len(splits["train"]) < self.batch_size:
            log.warning(
                "data.batch_size=%d is lowered to the %d training images",
                self.batch_size,
                len(splits["train"]),
            )
            self.batch_size = len(splits["train"])
        if given.root is not None:
            splits = self._place(splits)
        pixels = splits["train"].pixels
        if pixels is not None:
            self.in_memory, self.crop_pct = True, 1.0
            self.image_size, self.in_chans = pixels.shape[1], pixels.shape[3]
            if not hasattr(self, "mean"):
                self.mean, self.std = mean_and_std(splits["train"])
        else:
            self.in_memory, self.in_chans = False, 3
            if not hasattr(self, "mean"):
                self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        if not len(self.mean) == len(self.std) == self.in_chans:
            raise UserError(f"data.mean and data.std must have {self.in_chans} numbers")
        self.augment = self._make_augment()
        if isinstance(self.augment, CachedCrop):
            self.cached = self._open_cache(splits, sizes)
        self.splits = splits

    def describe(self) -> dict[str, Any]:
        """What the data is, as plain data for ``result.json``."""
        subset = None
        if self.subset.active:
            subset = {
                "seed": self.subset.seed,
                "classes": self.class_names,
                "num_images": {name: len(images) for name, images in self.splits.items()},
                "images": {name: images.names for name, images in self.splits.items()},
            }
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "in_chans": self.in_chans,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "splits": {name: len(images) for name, images in self.splits.items()},
            "fingerprint": self.fingerprint,
            "subset": subset,
            "read_from": "memory" if self.in_memory else "cache" if self.cache else "files",
            "augment": json.loads(json.dumps(asdict(self.augment))),
        }

    def train_dataloader(self) -> Loader:
        """Shuffled batches of equal size; the rest of an epoch is left out."""
        rank, world_size = self._process()
        images = self.splits["train"]
        if len(images) < world_size:
            raise UserError(f"{len(images)} training images for {world_size} processes")
        sampler = EpochSampler(
            len(images),
            seed=self.seed,
            shuffle=not getattr(self.trainer, "overfit_batches", 0),
            even=True,
            rank=rank,
            world_size=world_size,
        )
        return self._loader("train", sampler, training=True)

    def val_dataloader(self) -> Loader:
        """Every validation image once, in order."""
        return self._eval_loader("val")

    def test_dataloader(self) -> Loader:
        """Every test image once, in order."""
        return self._eval_loader("test")

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, ...], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Augment and normalise a batch on the device that it has come to."""
        images, labels, *draws = batch
        if draws:
            assert not isinstance(self.augment, ResizedCrop)
            return self.augment(images, draws[0], self.mean, self.std), labels
        if isinstance(self.augment, CachedCrop):
            images = middle(images, self._window(), self.image_size, self.interpolation)
        return normalise(images, self.mean, self.std), labels

    def _place(self, splits: dict[str, Images]) -> dict[str, Images]:
        """Decide on the size of files and on whether they are decoded now."""
        assert self.root is not None
        own_size = longest_side(self.root, splits["train"])
        small = own_size <= SMALL_PIXELS
        if not hasattr(self, "image_size"):
            self.image_size = own_size if small else LARGE_PIXELS
        if self.in_memory is None:
            num_bytes = sum(len(images) for images in splits.values()) * 3 * self.image_size**2
            self.in_memory = small and num_bytes <= SMALL_BYTES and not self.cache
        if not self.in_memory:
            return splits
        parts = list({id(part): part for part in splits.values()}.values())
        decoded = decode(self.root, parts, self.image_size, self.interpolation)
        return {
            name: next(new for old, new in zip(parts, decoded, strict=True) if old is part)
            for name, part in splits.items()
        }

    def _make_augment(self) -> CropFlip | ResizedCrop | CachedCrop:
        options = self.augment_options
        if self.in_memory:
            self._check_known(CropFlip, "images in memory; set data.in_memory=false")
            in_memory = CropFlip(**options)
            in_memory.check(self.image_size)
            return in_memory
        if self.cache:
            self._check_known(CachedCrop, "pictures in a cache; set data.cache=false")
            if self.cache_size is None:
                self.cache_size = resized_side(self.image_size, self.crop_pct)
            cached = CachedCrop(self.cache_size, self.image_size, **options)
            cached.check()
            return cached
        self._check_known(ResizedCrop, "images that are read from files; set data.in_memory=true")
        if options.get("flip") == ALTERNATE:
            raise UserError(
                "data.augment.flip=alternate needs data.in_memory=true or data.cache=true; "
                "for images that are read from files it is true or false"
            )
        files = ResizedCrop(**options)
        files.check()
        return files

    def _check_known(self, kind: type, where: str) -> None:
        known = [field.name for field in fields(kind) if field.name not in SIDES]
        for key in self.augment_options:
            if key not in known:
                raise UserError(
                    f"data.augment.{key} has no effect on {where} or one of: {', '.join(known)}"
                )

    def _open_cache(self, splits: dict[str, Images], sizes: dict[str, np.ndarray]) -> Cache:
        assert self.root is not None
        assert self.cache_size is not None
        if self._window() != self.image_size and self.interpolation not in RESIZED_IN_BATCHES:
            raise UserError(
                f"data.interpolation={self.interpolation} does not resize batches; set "
                f"data.cache_size={resized_side(self.image_size, self.crop_pct)}, with which "
                f"nothing is resized, or one of: {', '.join(RESIZED_IN_BATCHES)}"
            )
        if self.cache_size > 2 * self.image_size:
            log.warning(
                "data.cache_size=%d is more than twice data.image_size=%d: "
                "training pictures are reduced without anti-aliasing",
                self.cache_size,
                self.image_size,
            )
        place = json.dumps([str(self.root.absolute()), asdict(self.subset)])
        key = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        stem = f"{self.name}-{self.cache_size}-{self.interpolation}-{key}"
        return open_cache(
            self.data_dir / "cache" / f"{stem}.npy",
            self.root,
            splits,
            sizes,
            size=self.cache_size,
            interpolation=self.interpolation,
            verify=self.cache == VERIFY,
        )

    def _window(self) -> int:
        """Side of the middle of a square in the map that evaluation looks at."""
        assert self.cache_size is not None
        return min(self.cache_size, math.ceil(self.cache_size * self.crop_pct - 1e-6))

    def _eval_loader(self, split: str) -> Loader:
        rank, world_size = self._process()
        images = self.splits[split]
        sampler = EpochSampler(
            len(images),
            seed=self.seed,
            shuffle=False,
            even=False,
            rank=rank,
            world_size=world_size,
        )
        return self._loader(split, sampler, training=False)

    def _loader(self, split: str, sampler: EpochSampler, *, training: bool) -> Loader:
        images = self.splits[split]
        batch_size = min(self.batch_size, len(sampler)) if training else self.batch_size
        batches = EpochBatches(sampler, batch_size, drop_last=training)
        if not isinstance(self.augment, ResizedCrop):
            augment = self.augment if training else None
            if images.pixels is not None:
                reader: Reader = MemoryReader(images.pixels, images.labels, augment=augment)
            else:
                pixels, positions = self.cached.pixels, self.cached.positions[split]
                reader = MemoryReader(pixels, images.labels, augment=augment, positions=positions)
            return Loader(reader, batches, pin_memory=self._is_on_gpu())
        assert self.root is not None
        if training:
            transform = self.augment.transform(self.image_size, self.interpolation)
        else:
            transform = eval_transform(self.image_size, self.interpolation, self.crop_pct)
        reader = FileReader(self.root, images, transform, random=training)
        workers = self.num_workers
        if workers is None:
            workers = max(1, min(16, (os.cpu_count() or 1) // sampler.world_size))
        return Loader(reader, batches, num_workers=workers, pin_memory=self._is_on_gpu())

    def _is_on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _process(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def _augment_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    known = {field.name for kind in (CropFlip, ResizedCrop) for field in fields(kind)}
    values = check_keys("data.augment", options or {}, tuple(known))
    flip = values.get("flip", True)
    if not isinstance(flip, bool) and flip != ALTERNATE:
        raise UserError(f"data.augment.flip must be true or false or alternate; got {flip!r}")
    for key in ("scale", "ratio"):
        if key in values:
            if not isinstance(values[key], Sequence) or isinstance(values[key], str):
                raise UserError(f"data.augment.{key} must be two numbers; got {values[key]!r}")
            values[key] = tuple(values[key])
    return values


def _channels(key: str, values: Sequence[float]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key} must be a list of numbers; got {values!r}") from error
    if key == "data.std" and not all(number > 0 for number in numbers):
        raise UserError(f"{key} must be greater than 0; got {list(numbers)}")
    return numbers


def _fingerprint(
    class_names: list[str], splits: dict[str, Images], sizes: dict[str, np.ndarray]
) -> str:
    """Of which images are in which split under which label; of files also their sizes."""
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for split, images in splits.items():
        digest.update(split.encode())
        digest.update("\0".join(images.names).encode("utf-8", "surrogateescape"))
        digest.update(images.labels.astype("<i8").tobytes())
        if split in sizes:
            digest.update(sizes[split].astype("<i8").tobytes())
    return digest.hexdigest()
