"""Image files: finding them, decoding all of them once, reading them in batches."""

from __future__ import annotations

import math
import os
import random
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dwsep_zoo.data.loader import BatchKey, RawBatch, derived_seed
from dwsep_zoo.data.progress import progress
from dwsep_zoo.data.shared_memory import fitting_workers
from dwsep_zoo.data.splits import Images
from dwsep_zoo.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
CHUNK = 32
CHUNKS_OF_A_WORKER = 8
"""A process with fewer costs more than it gains."""
MOST_OTHERS = 100_000
"""A folder with more entries than this that are not pictures is not a folder of pictures."""

Transform = Callable[[Image.Image], Tensor]
"""RGB picture -> (C, H, W) uint8."""


@dataclass(frozen=True)
class ResizedCrop:
    """The usual ImageNet augmentation, for pictures that are decoded in every epoch.

    Args:
        scale: smallest and largest part of the area that is cut out, arXiv:1409.4842.
        ratio: smallest and largest width / height of that part.
        flip: mirror every other picture left to right.
        auto_augment: timm's name of a policy, such as ``rand-m9-mstd0.5`` or ``original``.
        color_jitter: strength of random brightness, contrast and saturation; ``None``: none.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    auto_augment: str | None = None
    color_jitter: float | None = None

    def check(self) -> None:
        """Raises UserError for a policy that timm does not have."""
        try:
            self.transform(32, "bilinear")
        except (AssertionError, KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"data.augment.auto_augment={self.auto_augment!r}: timm has no such policy"
            ) from error

    def transform(self, image_size: int, interpolation: str) -> Transform:
        """Make the function that augments a training picture."""
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
    """Length of the shorter side after the resizing of :func:`eval_transform`."""
    return math.floor(image_size / crop_pct)


def eval_transform(image_size: int, interpolation: str, crop_pct: float) -> Transform:
    """Make a function that resizes the shorter side to ``image_size / crop_pct`` and cuts."""
    from timm.data import create_transform

    return create_transform(
        image_size, interpolation=interpolation, crop_pct=crop_pct, use_prefetcher=True
    )


def find_pictures(folder: Path) -> list[str]:
    """List the pictures in a folder and its subfolders, as sorted relative paths, but hidden ones.

    Links to folders are followed; a folder counts once, and a link back to one around it not at
    all.

    Raises:
        UserError: for a folder that cannot be listed, one of the kernel's, such as /proc, and one
            with very many other files.
    """
    found, others = [], 0
    seen = {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, onerror=_not_listed, followlinks=True):
        if os.stat(parent).st_dev in _kernel_devices():
            raise UserError(f"{parent} belongs to the operating system and has no pictures")
        inside = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders)}
        folders.clear()
        for name, real in inside.items():
            if not (name.startswith(".") or real in seen or leads_back(Path(real), folder)):
                seen.add(real)
                folders.append(name)
        pictures = [n for n in files if n.lower().endswith(EXTENSIONS) and not n.startswith(".")]
        inner = Path(parent).relative_to(folder).as_posix()
        found += pictures if inner == "." else [f"{inner}/{name}" for name in pictures]
        others += len(folders) + len(files) - len(pictures)
        if others > MOST_OTHERS and others > 10 * len(found):
            raise UserError(
                f"{folder} has more than {MOST_OTHERS:,} files and folders that are not pictures; "
                "data.root= must be a folder of pictures"
            )
    return sorted(found)


def leads_back(link: Path, folder: Path) -> bool:
    """Whether a link leads to ``folder`` or to one around it."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


def _not_listed(error: OSError) -> NoReturn:
    raise UserError(f"cannot list {error.filename}: {error.strerror}") from error


@cache
def _kernel_devices() -> set[int]:
    """Devices of file systems that the kernel makes up, whose listing may never end."""
    made_up = {os.stat(p).st_dev for p in ("/proc", "/sys", "/dev") if os.path.isdir(p)}
    return made_up - {os.stat("/").st_dev}


def read_picture(path: Path) -> Image.Image:
    """Decode a file to RGB.

    Raises:
        UserError: naming the path, if it is missing, damaged or not a picture.
    """
    with _opened(path) as image:
        if "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a file; both this and the later access to its pixels may fail."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read the picture {path}: {reason}") from error


def longest_side(root: Path, images: Images) -> int:
    """The longest side in pixels, from the headers of at most 64 files."""
    longest = 0
    for i in np.unique(np.linspace(0, len(images) - 1, 64).astype(int)):
        with _no_warnings(), _opened(root / images.names[i]) as image:
            longest = max(longest, *image.size)
    return longest


def decoded(
    root: Path, names: Sequence[str], size: int, interpolation: str
) -> Generator[Tensor, None, None]:
    """Decode pictures in order, some at a time: (n, size, size, 3) uint8.

    All cores decode, a few chunks ahead, in processes: threads take turns in Python's own part,
    which is most of the work for a small picture. The shorter side is resized to ``size`` and the
    middle is cut out; a picture of this size keeps its pixels.

    Raises:
        UserError: naming the path of a picture that cannot be read.
    """
    chunks = _Chunks(root, names, size, interpolation)
    wanted = min(os.cpu_count() or 1, len(chunks) // CHUNKS_OF_A_WORKER)
    workers = fitting_workers(wanted, CHUNK * 3 * size**2)
    # Draws from a generator of its own: networks start alike, whether there is a map or not.
    source = torch.Generator()
    with _no_warnings():  # of forks beside other threads
        batches = iter(DataLoader(chunks, None, num_workers=workers, generator=source))
    with progress(f"decoding {len(names)} pictures", len(names)) as advance:
        for pixels in batches:
            if isinstance(pixels, UserError):
                break
            yield pixels
            advance(len(pixels))
        else:
            return
    del batches  # ends the workers, which the error's traceback would keep
    raise pixels


class _Chunks(Dataset["Tensor | UserError"]):
    """The pixels of each :data:`CHUNK` pictures, or the error of one of them."""

    def __init__(self, root: Path, names: Sequence[str], size: int, interpolation: str):
        self.root, self.names, self.size = root, names, size
        self.transform = eval_transform(size, interpolation, crop_pct=1.0)

    def __len__(self) -> int:
        return math.ceil(len(self.names) / CHUNK)

    def __getitem__(self, number: int) -> Tensor | UserError:
        names = self.names[number * CHUNK : (number + 1) * CHUNK]
        pixels = torch.empty((len(names), self.size, self.size, 3), dtype=torch.uint8)
        try:
            with _no_warnings():
                for i, name in enumerate(names):
                    pixels[i] = self._read(name)
        except UserError as error:
            return error
        return pixels

    def _read(self, name: str) -> Tensor:
        picture = read_picture(self.root / name)
        if picture.size == (self.size, self.size):
            return torch.from_numpy(np.array(picture))
        return self.transform(picture).permute(1, 2, 0)


def file_states(root: Path, images: Images) -> np.ndarray:
    """(n, 2) int64: the bytes of each file, and the nanosecond in which it was last written.

    Raises:
        UserError: naming the path of an empty or missing one.
    """
    states = np.zeros((len(images), 2), dtype=np.int64)
    for i, name in enumerate(images.names):
        path = f"{root}/{name}"
        try:
            found = os.stat(path)
        except OSError as error:
            raise UserError(f"cannot read the picture {path}: {error.strerror}") from error
        if not found.st_size:
            raise UserError(f"cannot read the picture {path}: the file is empty")
        states[i] = found.st_size, found.st_mtime_ns
    return states


class FileReader:
    """Batches of pictures that are decoded when they are read.

    The result depends on (seed, epoch, position of the picture), not on the process that reads.

    Args:
        root: folder of the names.
        images: the pictures.
        transform: of each picture.
        training: whether ``transform`` draws random numbers.
    """

    def __init__(self, root: Path, images: Images, transform: Transform, *, training: bool):
        self.root = root
        self.images = images
        self.transform = transform
        self.training = training

    def __getitem__(self, key: BatchKey) -> RawBatch | UserError:
        """The batch of this key, or the error of one of its pictures."""
        indices = key.indices.tolist()
        try:
            with _no_warnings():
                pictures = [self._read(key, i) for i in indices]
        except UserError as error:
            return error
        labels = torch.from_numpy(self.images.labels[indices])
        return RawBatch(torch.stack(pictures), labels, self.training)

    def _read(self, key: BatchKey, i: int) -> Tensor:
        picture = read_picture(self.root / self.images.names[i])
        if not self.training:
            return self.transform(picture)
        with _seeded(derived_seed(key.seed, "picture", key.epoch, i)):
            return self.transform(picture)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings of damaged metadata, which are not used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the three generators from which transforms of timm and torchvision draw."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds every device
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
