"""Image files: finding them, decoding all of them once, reading them batch by batch."""

from __future__ import annotations

import math
import os
import random
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dwsep_zoo.data.loader import BatchKey, derived_seed
from dwsep_zoo.data.options import check_jitter, check_range, choose
from dwsep_zoo.data.progress import progress
from dwsep_zoo.data.splits import Images
from dwsep_zoo.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CHUNK = 32

Transform = Callable[[Image.Image], Tensor]
"""RGB picture -> (C, H, W) uint8."""


@dataclass(frozen=True)
class ResizedCrop:
    """The usual ImageNet augmentation, of pictures that are decoded anew in every epoch.

    Args:
        scale: smallest and largest part of the area that is cut out, arXiv:1409.4842.
        ratio: smallest and largest width / height of that part.
        flip: whether every other picture is mirrored left to right.
        auto_augment: timm's name of a policy, such as ``rand-m9-mstd0.5`` or ``original``.
        color_jitter: strength of random brightness, contrast and saturation; ``None``: none.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    auto_augment: str | None = None
    color_jitter: float | None = None

    def check(self) -> None:
        """Raises UserError for values that timm cannot take."""
        check_range("data.augment.scale", self.scale, largest=1.0)
        check_range("data.augment.ratio", self.ratio, largest=float("inf"))
        check_jitter(self.color_jitter)
        try:
            self.transform(32, "bilinear")
        except (AssertionError, KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"data.augment.auto_augment={self.auto_augment!r}: timm has no such policy"
            ) from error

    def transform(self, image_size: int, interpolation: str) -> Transform:
        """What is done to a training picture."""
        from timm.data import create_transform  # takes seconds to import

        return create_transform(
            image_size,
            is_training=True,
            scale=self.scale,
            ratio=self.ratio,
            hflip=0.5 if self.flip else 0.0,
            auto_augment=self.auto_augment,
            color_jitter=self.color_jitter,  # type: ignore[arg-type]
            interpolation=interpolation,
            use_prefetcher=True,  # leave the pixels uint8
        )


def resized_side(image_size: int, crop_pct: float) -> int:
    """To how many pixels :func:`eval_transform` resizes the shorter side."""
    return math.floor(image_size / crop_pct)


def eval_transform(image_size: int, interpolation: str, crop_pct: float) -> Transform:
    """Resize the shorter side to ``image_size / crop_pct``, cut out the middle."""
    from timm.data import create_transform

    return create_transform(
        image_size, interpolation=interpolation, crop_pct=crop_pct, use_prefetcher=True
    )


def find_pictures(folder: Path) -> list[str]:
    """The pictures in a folder and below, as sorted paths relative to it; hidden ones are not."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                found.append(Path(parent, name).relative_to(folder).as_posix())
    return sorted(found)


def read_picture(path: Path) -> Image.Image:
    """Decode a file to RGB.

    Raises:
        UserError: naming the path, if it is missing, damaged or no picture.
    """
    with _opened(path) as image:
        if "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Pillow decodes when pixels are asked for, so both that and opening may fail."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read the picture {path}: {reason}") from error


def longest_side(root: Path, images: Images) -> int:
    """The longest side, in pixels, that the heads of at most 64 files tell of."""
    longest = 0
    for i in np.unique(np.linspace(0, len(images) - 1, 64).astype(int)):
        with _no_warnings(), _opened(root / images.names[i]) as image:
            longest = max(longest, *image.size)
    return longest


def decode(
    root: Path, splits: Sequence[Images], image_size: int, interpolation: str
) -> list[Images]:
    """The same images with their pixels, decoded by all cores.

    Raises:
        UserError: naming the path of a picture that cannot be read.
    """
    names = [name for images in splits for name in images.names]
    pixels = torch.empty((len(names), image_size, image_size, 3), dtype=torch.uint8)
    done = 0
    for chunk in decoded(root, names, image_size, interpolation):
        pixels[done : done + len(chunk)] = chunk
        done += len(chunk)
    parts = pixels.split([len(images) for images in splits])
    return [
        Images(images.names, images.labels, part)
        for images, part in zip(splits, parts, strict=True)
    ]


def decoded(
    root: Path, names: Sequence[str], size: int, interpolation: str
) -> Generator[Tensor, None, None]:
    """The pictures in order, some at a time: (n, size, size, 3) uint8.

    All cores decode, a few chunks ahead. The shorter side is resized to ``size`` and the middle is
    cut out; a picture that has this size keeps its pixels.

    Raises:
        UserError: naming the path of a picture that cannot be read.
    """
    transform = eval_transform(size, interpolation, crop_pct=1.0)

    def read(first: int) -> Tensor:
        chunk = names[first : first + CHUNK]
        pixels = torch.empty((len(chunk), size, size, 3), dtype=torch.uint8)
        for i, name in enumerate(chunk):
            picture = read_picture(root / name)
            if picture.size == (size, size):
                pixels[i] = torch.from_numpy(np.array(picture))
            else:
                pixels[i] = transform(picture).permute(1, 2, 0)
        return pixels

    threads = os.cpu_count() or 1
    with (
        _no_warnings(),
        progress(f"decoding {len(names)} pictures", len(names)) as advance,
        ThreadPoolExecutor(threads) as pool,
    ):
        chunks = (pool.submit(read, first) for first in range(0, len(names), CHUNK))
        ahead = deque(islice(chunks, 2 * threads))
        try:
            while ahead:
                pixels = ahead.popleft().result()
                ahead.extend(islice(chunks, 1))
                yield pixels
                advance(len(pixels))
        finally:
            pool.shutdown(cancel_futures=True)


def file_sizes(root: Path, images: Images) -> np.ndarray:
    """(n,) int64: the bytes of each file.

    Raises:
        UserError: naming the path of an empty one.
    """
    sizes = np.array([(root / name).stat().st_size for name in images.names], dtype=np.int64)
    for i in np.flatnonzero(sizes == 0):
        raise UserError(f"cannot read the picture {root / images.names[i]}: the file is empty")
    return sizes


class FileReader:
    """Batches of pictures, decoded when they are read.

    What happens to a picture depends on (seed, epoch, its position) and not on the process that
    reads it.

    Args:
        root: folder of the names.
        images: which pictures.
        transform: of each.
        random: whether ``transform`` draws random numbers.
    """

    def __init__(self, root: Path, images: Images, transform: Transform, *, random: bool):
        self.root = root
        self.images = images
        self.transform = transform
        self.random = random

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, ...] | UserError:
        """(N, C, H, W) uint8 and (N,) int64."""
        indices = key.indices.tolist()
        try:
            with _no_warnings():
                pictures = [self._read(key, i) for i in indices]
        except UserError as error:
            return error
        return torch.stack(pictures), torch.from_numpy(self.images.labels[indices])

    def _read(self, key: BatchKey, i: int) -> Tensor:
        picture = read_picture(self.root / self.images.names[i])
        if not self.random:
            return self.transform(picture)
        with _seeded(derived_seed(key.seed, "picture", key.epoch, i)):
            return self.transform(picture)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Pillow warns of damaged metadata, which nobody here reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all three generators that the transforms of timm and torchvision draw from."""
    states: tuple[Any, ...] = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed looks at every device
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def check_interpolation(interpolation: str) -> str:
    """Raises UserError for a name that Pillow does not know."""
    return choose(interpolation, INTERPOLATIONS, "data.interpolation")
