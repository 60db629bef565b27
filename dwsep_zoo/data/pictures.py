"""Image files: decoding all of them once, reading them in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dwsep_zoo.data.crop import split_off_crop
from dwsep_zoo.data.decode import no_warnings
from dwsep_zoo.data.effects import draw_boxes
from dwsep_zoo.data.loader import BatchKey, Draw, RawBatch, derived_seed, seed_generators, seeded
from dwsep_zoo.data.policies import picture_policy
from dwsep_zoo.data.progress import progress
from dwsep_zoo.data.shared_memory import fitting_workers
from dwsep_zoo.data.splits import Images
from dwsep_zoo.data.store import Store
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.process import cores

CHUNK = 32
CHUNKS_OF_A_WORKER = 8
"""A process with fewer costs more than it gains."""
EXTREME = 16
"""A picture whose longer side is this many times the shorter is cut before it is resized."""

Transform = Callable[[Image.Image], Tensor]
"""RGB picture -> (C, H, W) uint8."""
T = TypeVar("T")


@dataclass(frozen=True)
class ResizedCrop:
    """The usual ImageNet augmentation, for pictures that are decoded in every epoch.

    Args:
        scale: smallest and largest part of the area that is cut out, arXiv:1409.4842.
        ratio: smallest and largest width / height of that part.
        flip: mirror every other picture left to right.
        interpolation: of resizing it; ``random``: bilinear or bicubic; ``None``: the data's.
        auto_augment: a policy, see :mod:`dwsep_zoo.data.policies`; ``None``: none.
        color_jitter: strength of random brightness, contrast and saturation; ``None``: none.
        erase: probability that a rectangle is set to the mean, which happens in batches, see
            :mod:`dwsep_zoo.data.effects`; ``None``: 0.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    interpolation: str | None = None
    auto_augment: str | None = None
    color_jitter: float | None = None
    erase: float | None = None

    def draw(self, count: int, g: torch.Generator, side: int) -> Tensor:
        """(count, 4) int64: what is erased in images of ``side`` pixels."""
        return draw_boxes(count, g, side, self.erase or 0.0)

    def transform(self, image_size: int, interpolation: str, mean: Sequence[float]) -> Transform:
        """Make the function that augments a training picture, but for erasing.

        Args:
            image_size: side of the result.
            interpolation: of the data.
            mean: of values in 0-1: what a policy moves in at the edges.
        """
        from timm.data import create_transform  # takes seconds to import
        from torchvision.transforms import Compose

        parts = create_transform(
            image_size,
            is_training=True,
            scale=self.scale,
            ratio=self.ratio,
            hflip=0.5 if self.flip else 0.0,
            color_jitter=self.color_jitter,  # type: ignore[arg-type]
            interpolation=self.interpolation or interpolation,
            use_prefetcher=True,  # leave the pixels uint8
            separate=True,
        )
        crop, *others = (part.transforms for part in parts)
        if self.auto_augment is not None:
            # Not by timm, which lacks torchvision's policies and leaves colours out beside its own.
            crop.append(picture_policy(self.auto_augment, image_size, interpolation, mean))
        return Compose([*crop, *chain(*others)])


def resized_side(image_size: int, crop_pct: float) -> int:
    """Length of the shorter side after the resizing of :func:`eval_transform`."""
    return math.floor(image_size / crop_pct)


def eval_transform(image_size: int, interpolation: str, crop_pct: float) -> Transform:
    """Make a function that resizes the shorter side to ``image_size / crop_pct`` and cuts.

    A picture that is extremely long never exists at its resized length, which may be gigabytes:
    only the part that is cut out is computed, of the same pixels.
    """
    from timm.data import create_transform

    usual: Transform = create_transform(
        image_size, interpolation=interpolation, crop_pct=crop_pct, use_prefetcher=True
    )
    side = resized_side(image_size, crop_pct)
    resample = Image.Resampling[interpolation.upper()]

    def used(length: int, short: int) -> tuple[float, float]:
        """The part of a side that is cut out, in pixels of the picture."""
        resized = int(side * length / short)
        first = round((resized - image_size) / 2)
        return first * length / resized, (first + image_size) * length / resized

    def transform(picture: Image.Image) -> Tensor:
        short = min(picture.size)
        if max(picture.size) < EXTREME * short:
            return usual(picture)
        (left, right), (top, bottom) = (used(length, short) for length in picture.size)
        # Two steps, as Pillow takes them in another order where only a part is wanted.
        size, box = (image_size, picture.height), (left, 0, right, picture.height)
        part = picture.resize(size, resample, box)
        part = part.resize((image_size, image_size), resample, (0, top, image_size, bottom))
        return torch.from_numpy(np.atleast_3d(np.array(part))).permute(2, 0, 1)

    return transform


def longer_sides(store: Store, images: Images) -> np.ndarray:
    """(n) int: the longer sides in pixels of at most 64 pictures, from their headers."""
    names = [images.names[i] for i in np.unique(np.linspace(0, len(images) - 1, 64).astype(int))]
    store = store.ahead(names)
    sides = []
    for name in names:
        with no_warnings(), store.opened(name) as image:
            sides.append(max(image.size))
    return np.array(sides)


def decoded(
    store: Store, names: Sequence[str], size: int, interpolation: str
) -> Generator[Tensor, None, None]:
    """Decode pictures in order, some at a time: (n, size, size, 3) uint8.

    All cores decode, in processes: threads take turns in Python's own part, which is most of the
    work for a small picture. The shorter side is resized to ``size`` and the
    middle is cut out; a picture of this size keeps its pixels.

    Raises:
        UserError: naming the path of a picture that cannot be read.
    """
    chunks = _Chunks(store, names, size, interpolation)
    title = f"decoding {len(names)} pictures"
    batches = in_processes(chunks, len(names), title, CHUNK * 3 * size**2)
    for pixels in batches:
        if isinstance(pixels, UserError):
            break
        yield pixels
    else:
        return
    batches.close()  # ends the workers, which the error's traceback would keep
    raise pixels


def in_processes(
    parts: Dataset[T], num_pictures: int, title: str, part_bytes: int
) -> Generator[T, None, None]:
    """The parts in order, each of up to :data:`CHUNK` pictures, a few ahead in processes.

    Args:
        parts: makes each from its number.
        num_pictures: of all parts.
        title: of their progress.
        part_bytes: size of the result of one.
    """
    wanted = min(len(cores()), len(parts) // CHUNKS_OF_A_WORKER)  # type: ignore[arg-type]
    workers = fitting_workers(wanted, part_bytes)
    # Draws from a generator of its own: networks start alike, whether there is a map or not.
    source = torch.Generator()
    with no_warnings():  # of forks beside other threads
        batches = iter(DataLoader(parts, None, num_workers=workers, generator=source))
    with progress(title, num_pictures) as advance:
        for number, part in enumerate(batches):
            yield part
            advance(min(CHUNK, num_pictures - number * CHUNK))


class _Chunks(Dataset["Tensor | UserError"]):
    """The pixels of each :data:`CHUNK` pictures, or the error of one of them."""

    def __init__(self, store: Store, names: Sequence[str], size: int, interpolation: str):
        self.store, self.names, self.size = store, names, size
        self.transform = eval_transform(size, interpolation, crop_pct=1.0)

    def __len__(self) -> int:
        return math.ceil(len(self.names) / CHUNK)

    def __getitem__(self, number: int) -> Tensor | UserError:
        names = self.names[number * CHUNK : (number + 1) * CHUNK]
        pixels = torch.empty((len(names), self.size, self.size, 3), dtype=torch.uint8)
        try:
            store = self.store.ahead(names)
            with no_warnings():
                for i, name in enumerate(names):
                    pixels[i] = self._read(store, name)
        except UserError as error:
            return error
        return pixels

    def _read(self, store: Store, name: str) -> Tensor:
        picture = store.read(name)
        if picture.size == (self.size, self.size):
            return torch.from_numpy(np.array(picture))
        return self.transform(picture).permute(1, 2, 0)


def problems(store: Store, names: Sequence[str]) -> dict[str, str]:
    """The pictures that cannot be decoded, and why.

    Raises:
        UserError: if their server does not send them.
    """
    parts = [list(names[first : first + CHUNK]) for first in range(0, len(names), CHUNK)]
    found: dict[str, str] = {}
    title = f"trying to decode {len(names):,} pictures"
    for part in in_processes(_Tried(store, parts), len(names), title, CHUNK * 100):
        if isinstance(part, UserError):
            raise part
        found.update(part)
    return found


class _Tried(Dataset["dict[str, str] | UserError"]):
    """The pictures of each part that cannot be decoded, and why; or an error of their server."""

    def __init__(self, store: Store, parts: Sequence[list[str]]):
        self.store, self.parts = store, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> dict[str, str] | UserError:
        found = {}
        try:
            store = self.store.ahead(self.parts[number])
        except UserError as error:
            return error
        with no_warnings():
            for name in self.parts[number]:
                try:
                    store.read(name)
                except UserError as error:
                    found[name] = str(error)
        return found


class FileReader:
    """Batches of pictures that are decoded when they are read.

    The result depends on (seed, round, position of the picture), not on the process that reads.

    Args:
        store: has the pictures.
        images: their names.
        transform: of each picture.
        training: whether ``transform`` draws random numbers.
        draw: for what happens in batches; ``None``: nothing does.
    """

    def __init__(
        self,
        store: Store,
        images: Images,
        transform: Transform,
        *,
        training: bool,
        draw: Draw | None = None,
    ):
        self.store = store
        self.images = images
        self.transform = transform
        self.training = training
        self.draw = draw
        self.crop, self.rest = split_off_crop(transform)

    def __getitem__(self, key: BatchKey) -> RawBatch | UserError:
        """The batch of this key, or the error of one of its pictures."""
        indices, rounds = key.indices.tolist(), key.rounds.tolist()
        try:
            store = self.store.ahead([self.images.names[i] for i in indices])
            with no_warnings(), seeded(0):  # each picture seeds them anew
                pictures = [
                    self._read(store, i, derived_seed(key.seed, "picture", round_, i))
                    for i, round_ in zip(indices, rounds, strict=True)
                ]
        except UserError as error:
            return error
        labels = torch.from_numpy(self.images.labels[indices])
        draws = self.draw and self.draw(key)
        return RawBatch(torch.stack(pictures), labels, self.training, draws)

    def _read(self, store: Store, i: int, seed: int) -> Tensor:
        read = partial(store.read, self.images.names[i])
        if not self.training:
            return self.transform(read())
        seed_generators(seed)
        return self.rest(self.crop(read) if self.crop else read())
