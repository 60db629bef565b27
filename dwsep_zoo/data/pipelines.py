"""Three ways from images to batches: from memory, from a memory map, from files."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from torch import Tensor

from dwsep_zoo.data.augment import (
    ALTERNATE,
    RESIZED_IN_BATCHES,
    CachedCrop,
    CropFlip,
    draw_batch,
    middle,
    normalise,
)
from dwsep_zoo.data.cache import Pictures, open_cache, read_all
from dwsep_zoo.data.decode import WHITE
from dwsep_zoo.data.effects import erase
from dwsep_zoo.data.loader import Draw, RawBatch, Reader
from dwsep_zoo.data.memory import MemoryReader, mean_and_std
from dwsep_zoo.data.pictures import (
    FileReader,
    ResizedCrop,
    eval_transform,
    longer_sides,
    resized_side,
)
from dwsep_zoo.data.policies import check_policy
from dwsep_zoo.data.splits import Labelled
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import cache_folder
from dwsep_zoo.models.convnet import IMAGENET_MEAN, IMAGENET_STD
from dwsep_zoo.schema.data_settings import AugmentSettings, DataSettings
from dwsep_zoo.schema.process import cores_each

log = logging.getLogger("dwsep_zoo")

SMALL_PIXELS = 64
"""A set of which most are at most this large is trained at this or its own size, from memory."""
SMALL_BYTES = 4 * 2**30
"""More than this is decoded into memory only if the user asks for it."""
LARGE_PIXELS = 224
MOST_WORKERS = 16
SIDES = ("cache_size", "image_size")
"""Fields of CachedCrop that ``data.augment`` does not set."""

A = TypeVar("A", CropFlip, CachedCrop, ResizedCrop)


class Pipeline(ABC):
    """Makes batches of the images of all splits.

    Attributes:
        splits: the images.
        image_size: side of the network's images in pixels.
        in_chans: their channels.
        mean: of each channel, of values in 0-1.
        std: likewise.
        interpolation: of resizing.
        crop_pct: part of the resized side that evaluation uses.
        augment: random changes of training images.
        read_from: a word for the record.
    """

    augment: CropFlip | CachedCrop | ResizedCrop
    read_from: ClassVar[str]

    def __init__(self, settings: DataSettings, given: Labelled, image_size: int, in_chans: int = 3):
        self.splits = given.splits
        self.image_size = image_size
        self.in_chans = in_chans
        self.mean, self.std = given.statistics or (IMAGENET_MEAN, IMAGENET_STD)
        if settings.mean is not None and settings.std is not None:
            self.mean, self.std = settings.mean, settings.std
        self.interpolation = settings.interpolation or given.interpolation or "bicubic"
        self.crop_pct = settings.crop_pct or 0.875

    @abstractmethod
    def reader(self, split: str, *, training: bool) -> Reader:
        """Make the reader of a split's batches, with augmentation if ``training``."""

    @abstractmethod
    def prepare_batch(self, batch: RawBatch) -> Tensor:
        """(N, C, H, W) float32: the augmented, normalised images of a batch on its device."""

    def num_workers(self, processes: int) -> int:
        """Processes that read batches, for each of this machine's ``processes`` that train."""
        return 0

    def _draw(self, split: str) -> Draw:
        num_images = len(self.splits[split])
        return partial(
            draw_batch, augment=self.augment, num_images=num_images, side=self.image_size
        )


class MemoryPipeline(Pipeline):
    """Decoded images in memory, augmented in batches on the device."""

    augment: CropFlip
    read_from = "memory"

    def __init__(
        self,
        settings: DataSettings,
        given: Labelled,
        image_size: int,
        contents: Mapping[str, np.ndarray],
        data_dir: Path,
    ):
        where = "images in memory; set data.in_memory=false"
        self.augment = _create_augment(CropFlip, settings.augment, where)
        self.augment.check(image_size)
        if given.store is not None:
            interpolation = settings.interpolation or "bicubic"
            pictures = Pictures(given.store, given.splits, contents, image_size, interpolation)
            given = replace(given, splits=read_all(_maps(settings, pictures, data_dir), pictures))
        train = given.splits["train"]
        if given.statistics is None and settings.mean is None:
            given = replace(given, statistics=mean_and_std(train))
        super().__init__(settings, given, image_size, _channels(given))
        self.crop_pct = 1.0

    def reader(self, split: str, *, training: bool) -> Reader:
        images = self.splits[split]
        assert images.pixels is not None
        draw = self._draw(split) if training else None
        return MemoryReader(images.pixels, images.labels, draw=draw)

    def prepare_batch(self, batch: RawBatch) -> Tensor:
        if batch.training:
            assert batch.draws is not None
            return self.augment(batch.images, batch.draws, self.mean, self.std)
        return normalise(batch.images, self.mean, self.std)


class CachePipeline(Pipeline):
    """Squares in a memory map, cropped and augmented in batches on the device."""

    augment: CachedCrop
    read_from = "cache"

    def __init__(
        self,
        settings: DataSettings,
        given: Labelled,
        image_size: int,
        contents: Mapping[str, np.ndarray],
        data_dir: Path,
    ):
        super().__init__(settings, given, image_size)
        assert given.store is not None
        plain_size = resized_side(image_size, self.crop_pct)
        size = settings.cache_size or plain_size
        self.augment = _create_augment(
            CachedCrop,
            settings.augment,
            "pictures in a cache; set data.cache=false",
            cache_size=size,
            image_size=image_size,
        )
        # Side of the middle of a square that evaluation uses.
        self.window = min(size, math.ceil(size * self.crop_pct - 1e-6))
        if self.window != image_size and self.interpolation not in RESIZED_IN_BATCHES:
            raise UserError(
                f"data.interpolation={self.interpolation} cannot resize batches; set "
                f"data.cache_size={plain_size}, with which nothing is resized, or one of: "
                f"{', '.join(RESIZED_IN_BATCHES)}"
            )
        if size > 2 * image_size:
            log.warning(
                "data.cache_size=%d is more than twice data.image_size=%d: "
                "training pictures are reduced without anti-aliasing",
                size,
                image_size,
            )
        pictures = Pictures(given.store, given.splits, contents, size, self.interpolation)
        self.path = _maps(settings, pictures, data_dir)[0]
        self.cache = open_cache(self.path, pictures, verify=settings.cache == "verify")

    def reader(self, split: str, *, training: bool) -> Reader:
        draw = self._draw(split) if training else None
        labels, positions = self.splits[split].labels, self.cache.positions[split]
        return MemoryReader(self.cache.pixels, labels, draw=draw, positions=positions)

    def prepare_batch(self, batch: RawBatch) -> Tensor:
        if batch.training:
            assert batch.draws is not None
            return self.augment(batch.images, batch.draws, self.mean, self.std)
        images = middle(batch.images, self.window, self.image_size, self.interpolation)
        return normalise(images, self.mean, self.std)


class FilePipeline(Pipeline):
    """Files, decoded and augmented one by one in worker processes."""

    augment: ResizedCrop
    read_from = "files"

    def __init__(self, settings: DataSettings, given: Labelled, image_size: int):
        super().__init__(settings, given, image_size)
        assert given.store is not None
        self.store = given.store
        self.workers = settings.num_workers
        if settings.augment.flip == ALTERNATE:
            raise UserError(
                "data.augment.flip=alternate needs data.in_memory=true or data.cache=true; "
                "for images that are read from files it is true or false"
            )
        where = "images that are read from files; set data.in_memory=true"
        self.augment = _create_augment(ResizedCrop, settings.augment, where)

    def reader(self, split: str, *, training: bool) -> Reader:
        size, images = self.image_size, self.splits[split]
        if not training:
            transform = eval_transform(size, self.interpolation, self.crop_pct)
            return FileReader(self.store, images, transform, training=False)
        transform = self.augment.transform(size, self.interpolation, self.mean)
        draw = self._draw(split) if self.augment.erase else None
        return FileReader(self.store, images, transform, training=True, draw=draw)

    def prepare_batch(self, batch: RawBatch) -> Tensor:
        images = normalise(batch.images, self.mean, self.std)
        return images if batch.draws is None else erase(images, batch.draws)

    def num_workers(self, processes: int) -> int:
        return min(MOST_WORKERS, cores_each(processes)) if self.workers is None else self.workers


def create_pipeline(
    settings: DataSettings,
    given: Labelled,
    contents: Mapping[str, np.ndarray],
    data_dir: Path,
) -> Pipeline:
    """Choose the pipeline from the settings and the pictures' own size, and make it.

    Args:
        settings: of the data set.
        given: the images of all three splits.
        contents: of the files of each split, if they are files; see ``checksums``.
        data_dir: folder in which caches lie.

    Raises:
        UserError: for settings that these images cannot take.
    """
    channels, pixels = _channels(given), given.splits["train"].pixels
    if settings.mean and not len(settings.mean) == len(settings.std or ()) == channels:
        raise UserError(f"data.mean and data.std must have {channels} numbers")
    if given.store is None:
        assert pixels is not None
        return MemoryPipeline(settings, given, pixels.shape[1], contents, data_dir)
    # A few pictures stand for all; a minority that is unlike the others must not decide.
    sides = longer_sides(given.store, given.splits["train"])
    middle = int(np.median(sides))  # that of most pictures, if most have one in common
    small = middle <= SMALL_PIXELS
    own_size = middle if 2 * (sides == middle).sum() > len(sides) else SMALL_PIXELS
    size = settings.image_size or (own_size if small else LARGE_PIXELS)
    if settings.cache:
        return CachePipeline(settings, given, size, contents, data_dir)
    in_memory = settings.in_memory
    if in_memory is None:
        num_bytes = sum(len(images) for images in given.splits.values()) * 3 * size**2
        in_memory = small and num_bytes <= SMALL_BYTES
    if in_memory:
        return MemoryPipeline(settings, given, size, contents, data_dir)
    return FilePipeline(settings, given, size)


def _maps(settings: DataSettings, pictures: Pictures, data_dir: Path) -> list[Path]:
    """Places of a map."""
    kind = f"{settings.name}-{pictures.size}-{pictures.interpolation}"
    if (background := pictures.store.background) != WHITE:
        kind += f"-{background.removeprefix('#')}"
    subset = json.dumps(settings.subset.plain())
    return cache_places(pictures.store.root, data_dir, kind, ".npy", subset)


def cache_places(root: Path, data_dir: Path, kind: str, suffix: str, part: str = "") -> list[Path]:
    """Places of what is kept about pictures: beside the data, or in the user's cache folder.

    Not among the pictures, where its folder would be taken for a class.

    Args:
        root: folder of the pictures.
        data_dir: folder of downloaded sets and caches.
        kind: begins the file's name.
        suffix: ends it.
        part: of the pictures, if it is not of all.
    """
    place = json.dumps([str(root.absolute()), part])
    key = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    own = cache_folder()
    places = [data_dir / "cache", *([own / "pictures"] if own else [])]
    inside = root.resolve()
    places.sort(key=lambda place: place.resolve().is_relative_to(inside))
    return [place / f"{kind}-{key}{suffix}" for place in places]


def _channels(given: Labelled) -> int:
    pixels = given.splits["train"].pixels
    return 3 if pixels is None else pixels.shape[3]


def _create_augment(kind: type[A], settings: AugmentSettings, where: str, **sides: int) -> A:
    """Make an augmentation from the keys that are set; raises UserError for one it lacks."""
    known = [field.name for field in fields(kind) if field.name not in SIDES]
    given = {key: value for key, value in settings if value is not None}
    for key in given:
        if key not in known:
            raise UserError(
                f"data.augment.{key} has no effect on {where} or one of: {', '.join(known)}"
            )
    if settings.auto_augment is not None:
        check_policy(settings.auto_augment, batched=kind is not ResizedCrop)
    return kind(**{**given, **sides})
