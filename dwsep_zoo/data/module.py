"""The data module of every data set: splits, loaders, augmentation and their description."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from pydantic import JsonValue
from torch import Tensor

from dwsep_zoo.data.contents import DECODER, Kept, contents_of, without_unreadable
from dwsep_zoo.data.decode import WHITE
from dwsep_zoo.data.loader import (
    BalancedSampler,
    BatchKey,
    EpochBatches,
    EpochSampler,
    Loader,
    RawBatch,
    Reader,
)
from dwsep_zoo.data.mix import Mixing, MixingReader, mix
from dwsep_zoo.data.pipelines import Pipeline, cache_places, create_pipeline
from dwsep_zoo.data.shared_memory import fitting_workers
from dwsep_zoo.data.source import Source
from dwsep_zoo.data.splits import (
    SPLITS,
    Images,
    Labelled,
    fingerprint,
    is_subset,
    make_splits,
    select_classes,
    thin,
)
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import atomic_write
from dwsep_zoo.schema.data_settings import DataSettings

log = logging.getLogger("dwsep_zoo")

SKIPPED = "skipped.txt"
"""Lists the pictures that were left out, in the folder of a run."""


class TrainingBatch(NamedTuple):
    """A batch as a training step takes it.

    Attributes:
        images: (N, C, H, W) float32 in channels_last.
        labels: (N,) int64.
        share: () float32, the part of each image that is its own; the rest is of its partner, see
            :mod:`dwsep_zoo.data.mix`. ``None``: all of it.
    """

    images: Tensor
    labels: Tensor
    share: Tensor | None = None


def skipped_text(skipped: Mapping[str, str]) -> bytes:
    """The content of ``skipped.txt``."""
    text = "".join(f"{reason}\n" for reason in skipped.values())
    return text.encode("utf-8", "surrogateescape")


class ImageData(L.LightningDataModule):
    """A data set, ready for training.

    Loaders give a :class:`RawBatch`; :meth:`prepare_batch` turns it into augmented, normalised
    float32 images in the channels_last memory format, and labels. Batches to evaluate come
    prepared. A training step calls :meth:`training_batch` itself, so that a CUDA graph can contain
    it.

    Training batches are a function of (seed, epoch, number of the batch, rank of the process)
    alone. Each process has its share: the same number of training batches as the others; each image
    to evaluate once, so that some processes may have one more, and metrics must be reduced by their
    counts, as torchmetrics does.

    The attributes below exist after ``prepare_data`` and ``setup``, which also lowers
    ``batch_size`` (of each process), with a warning, if there are fewer training images;
    ``skipped`` has the reason for each picture that was left out, as it cannot be read.

    Args:
        settings: those of the data set.
        source: its images.
        seed: of the order and the augmentation.
        data_dir: folder in which caches lie.
        mixing: of training images; ``None``: none.
    """

    pipeline: Pipeline
    splits: dict[str, Images]
    class_names: list[str]
    num_classes: int
    in_chans: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    recorded_name: str

    def __init__(
        self,
        settings: DataSettings,
        source: Source,
        *,
        seed: int,
        data_dir: Path,
        mixing: Mixing | None = None,
    ):
        super().__init__()
        self.name = settings.name
        self.settings = settings
        self.source = source
        self.seed = seed
        self.data_dir = data_dir
        self.mixing = mixing
        given = settings.batch_size
        self.batch_size = 1 if given == "auto" else given  # auto: whoever trains sets it
        self.skipped: dict[str, str] = {}

    def prepare_data(self) -> None:
        """Download missing files."""
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Choose the images and make the pipeline.

        Raises:
            UserError: for a subset that does not exist, a picture that cannot be read, or settings
                that do not fit the images.
        """
        if hasattr(self, "pipeline"):
            return
        settings = self.settings
        given = self.load()
        if len(given.class_names) < 2:
            raise UserError(f"data={self.name} has the single class {given.class_names[0]!r}")
        if given.store is not None and settings.on_error == "skip":
            given, self.skipped = without_unreadable(given, self.kept(given.store.root))
        splits = self.split(given)
        contents = {}
        if (store := given.store) is not None:
            contents = contents_of(
                store, splits, self.kept(store.root), verify=settings.cache == "verify"
            )
        self.class_names, self.num_classes = given.class_names, len(given.class_names)
        self.fingerprint = fingerprint(self.class_names, splits, contents)
        self.recorded_name = given.packed or self.settings.name
        given = replace(given, splits=splits)
        self.pipeline = pipeline = create_pipeline(settings, given, contents, self.data_dir)
        self.splits, self.in_chans = pipeline.splits, pipeline.in_chans
        self.image_size, self.mean, self.std = pipeline.image_size, pipeline.mean, pipeline.std
        if self.epoch_images < self.batch_size:
            log.warning(
                "data.batch_size=%d is lowered to the %d training images of an epoch",
                self.batch_size,
                self.epoch_images,
            )
            self.batch_size = self.epoch_images

    @property
    def epoch_images(self) -> int:
        """Training images of an epoch, repeated ones as well, in all processes together."""
        return self._shuffled(self.seed).used

    def choose(self) -> Labelled:
        """The images of all splits, also those that cannot be read; nothing else is set up."""
        given = self.load()
        return replace(given, splits=self.split(given))

    def load(self) -> Labelled:
        """The images as they are given, of the chosen classes."""
        given = select_classes(self.source.load(), self.settings.subset)
        if given.store is not None and self.settings.background:
            given.store.background = self.settings.background
        return given

    def split(self, given: Labelled) -> dict[str, Images]:
        """The images of each split, from those that are given."""
        settings = self.settings
        if "train" not in given.splits:  # made for tests alone
            return dict.fromkeys(SPLITS, given.splits["test"])
        splits = make_splits(
            given.splits,
            val_fraction=settings.val_fraction,
            test_fraction=settings.test_fraction,
            seed=settings.split_seed,
        )
        splits["train"] = thin(splits["train"], settings.subset, given.class_names)
        return splits

    def kept(self, root: Path) -> Kept:
        """Places of what is known about files."""
        return Kept(
            cache_places(root, self.data_dir, self.settings.name, ".checksums.npy"),
            cache_places(root, self.data_dir, f"{self.settings.name}-{DECODER}", ".readable.npy"),
        )

    def list_skipped(self, folder: Path) -> None:
        """Write ``skipped.txt`` if pictures were left out."""
        if self.skipped:
            atomic_write(folder / SKIPPED, skipped_text(self.skipped))

    def describe(self) -> dict[str, JsonValue]:
        """The data as plain values for ``result.json``."""
        subset = None
        counts = {name: len(images) for name, images in self.splits.items()}
        if is_subset(self.settings.subset):
            subset = {
                "seed": self.settings.subset.seed,
                "classes": self.class_names,
                "num_images": counts,
                "images": {name: images.names for name, images in self.splits.items()},
            }
        description = {
            "name": self.recorded_name,
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "in_chans": self.in_chans,
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.pipeline.interpolation,
            "crop_pct": self.pipeline.crop_pct,
            "background": None if self.settings.background == WHITE else self.settings.background,
            "splits": counts,
            "fingerprint": self.fingerprint,
            "skipped": len(self.skipped),
            "subset": subset,
            "read_from": self.pipeline.read_from,
            "augment": asdict(self.pipeline.augment),
        }
        return json.loads(json.dumps(description))

    def train_dataloader(self) -> Loader:
        """Shuffled batches of equal size; the rest of an epoch is left out."""
        for split in SPLITS:  # each has an image for every process; better said before the training
            self._sampler(split, training=split == "train")
        return self._loader("train", training=True)

    def val_dataloader(self) -> Loader:
        """Every validation image once, in order."""
        return self._loader("val", training=False)

    def test_dataloader(self) -> Loader:
        """Every test image once, in order."""
        return self._loader("test", training=False)

    def statistics_dataloader(self, num_images: int) -> Loader:
        """Training images as evaluation has them, for the statistics of norms.

        They are drawn by ``data.split_seed``, so that they are the same every time, and come in
        batches of the training's size, with every class as often as there.
        """
        sampler = self._shuffled(self.settings.split_seed, limit=num_images)
        return self._load("train", sampler, training=False, equal_batches=True)

    def prepare_batch(self, batch: RawBatch) -> tuple[Tensor, Tensor]:
        """Augment and normalise a batch on its device."""
        images = self.pipeline.prepare_batch(batch)
        if self.trainer is not None and self.trainer.precision == "64-true":
            images = images.double()  # Lightning has converted the weights, and not these
        return images, batch.labels

    def training_batch(self, batch: RawBatch) -> TrainingBatch:
        """Augment, normalise and mix a batch on its device."""
        images, labels = self.prepare_batch(batch)
        if batch.mix is None:
            return TrainingBatch(images, labels)
        images, share = mix(images, batch.mix)
        return TrainingBatch(images, labels, share)

    def on_after_batch_transfer(
        self, batch: RawBatch, dataloader_idx: int
    ) -> RawBatch | tuple[Tensor, Tensor]:
        return batch if batch.training else self.prepare_batch(batch)

    def first_batch(self) -> TrainingBatch:
        """The first training batch of this process, made once more and without workers."""
        key = self._first_key(self.batch_size)
        return self.training_batch(self._read("train", key, training=True))

    def first_images(self, count: int, epoch: int) -> TrainingBatch:
        """The first training images, augmented as if each epoch's first batch were of them."""
        key = self._first_key(count)
        key = key._replace(epoch=epoch, rounds=torch.full_like(key.indices, epoch))
        return self.training_batch(self._read("train", key, training=True))

    def test_images(self, positions: Tensor) -> Tensor:
        """Some of the test images, as evaluation has them."""
        key = BatchKey(self.seed, 0, 0, 0, positions, torch.zeros_like(positions))
        return self.prepare_batch(self._read("test", key, training=False))[0]

    def for_display(self, images: Tensor) -> Tensor:
        """Undo the normalisation: ``(N, C, H, W)`` as a network gets them -> (N, H, W, C), 0-1."""
        shape = (1, len(self.mean), 1, 1)
        mean, std = (torch.tensor(values).view(shape) for values in (self.mean, self.std))
        return (images.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1)

    def _first_key(self, batch_size: int) -> BatchKey:
        sampler = self._sampler("train", training=True)
        batch_size = min(batch_size, len(sampler))
        return next(iter(EpochBatches(sampler, batch_size, drop_last=True)))

    def _read(self, split: str, key: BatchKey, *, training: bool) -> RawBatch:
        batch = self._reader(split, training=training)[key]
        if isinstance(batch, UserError):
            raise batch
        return batch

    def _reader(self, split: str, *, training: bool) -> Reader:
        reader = self.pipeline.reader(split, training=training)
        return MixingReader(reader, self.mixing) if training and self.mixing else reader

    def _sampler(self, split: str, *, training: bool) -> EpochSampler:
        num_images = len(self.splits[split])
        rank, world_size = self._place()
        if 0 < num_images < world_size or (training and not num_images):
            kind = {"train": "training", "val": "validation"}.get(split, split)
            raise UserError(f"{num_images} {kind} images for {world_size} processes")
        if training and not getattr(self.trainer, "overfit_batches", 0):
            return self._shuffled(self.seed)
        return EpochSampler(
            num_images,
            seed=self.seed,
            shuffle=False,
            even=training,
            rank=rank,
            world_size=world_size,
        )

    def _shuffled(self, seed: int, limit: int | None = None) -> EpochSampler:
        """The order of training images."""
        rank, world_size = self._place()
        labels = self.splits["train"].labels
        if self.settings.sampler == "balanced":
            return BalancedSampler(labels, seed=seed, limit=limit, rank=rank, world_size=world_size)
        return EpochSampler(
            len(labels),
            seed=seed,
            shuffle=True,
            even=True,
            limit=limit,
            rank=rank,
            world_size=world_size,
        )

    def _loader(self, split: str, *, training: bool) -> Loader:
        sampler = self._sampler(split, training=training)
        return self._load(split, sampler, training=training, equal_batches=training)

    def _load(
        self, split: str, sampler: EpochSampler, *, training: bool, equal_batches: bool
    ) -> Loader:
        trainer, batch_size = self.trainer, self.batch_size
        processes = trainer.num_devices if trainer else 1  # on this machine
        if equal_batches:
            batch_size = min(batch_size, len(sampler))
        return Loader(
            self._reader(split, training=training),
            EpochBatches(sampler, batch_size, drop_last=equal_batches),
            num_workers=fitting_workers(
                self.pipeline.num_workers(processes),
                batch_size * self.in_chans * self.image_size**2,
                processes,
            ),
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        )

    def _place(self) -> tuple[int, int]:
        """Rank of this process, and number of processes."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
