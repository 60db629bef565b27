"""Pictures that were decoded and resized once, in a file that is mapped into memory.

A map is ``<stem>.npy``, which ``numpy.load`` reads too, with ``<stem>.json`` beside it that says
what it is of. It comes into its place whole: what was not finished has another name and is never
read. Processes that want the same map wait for the one that builds it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.features
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from dwsep_zoo.data.pictures import decoded
from dwsep_zoo.data.progress import progress
from dwsep_zoo.data.splits import Images
from dwsep_zoo.errors import UserError

log = logging.getLogger("dwsep_zoo")

BLOCK = 1 << 22
SAMPLE = 64
"""So many pictures, evenly spaced, are compared with their checksum whenever a map is opened."""


@dataclass(frozen=True)
class Recipe:
    """What the pixels of a map depend on.

    Attributes:
        pictures: how many.
        fingerprint: of their names and of the sizes of their files.
        size: side of the squares.
        interpolation: of resizing.
        pillow: version of Pillow, which decodes and resizes.
        libjpeg_turbo: version of the library that it decodes JPEG with.
    """

    pictures: int
    fingerprint: str
    size: int
    interpolation: str
    pillow: str
    libjpeg_turbo: str | None

    @classmethod
    def of(cls, names: list[str], file_sizes: list[int], size: int, interpolation: str) -> Recipe:
        """That of pictures with these names and file sizes, with the installed libraries."""
        digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape"))
        digest.update(np.array(file_sizes, dtype="<i8").tobytes())
        return cls(
            pictures=len(names),
            fingerprint=digest.hexdigest(),
            size=size,
            interpolation=interpolation,
            pillow=PIL.__version__,
            libjpeg_turbo=PIL.features.version("libjpeg_turbo"),
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.pictures, self.size, self.size, 3

    def change_from(self, other: dict[str, Any]) -> str | None:
        """How a map of ``other`` differs from one of this, in words; ``None``: it does not."""
        own = asdict(self)
        changed = [key for key in own if other.get(key) != own[key]]
        if not changed:
            return None
        if changed[0] in ("pictures", "fingerprint"):
            return f"pictures were added, removed or changed (there are {self.pictures})"
        return f"{changed[0]} was {other.get(changed[0])} and is {own[changed[0]]}"


@dataclass(frozen=True)
class Sidecar:
    """What ``<stem>.json`` says.

    Attributes:
        recipe: of the pixels.
        sha256: of the file.
        sample_sha256: of some of its pictures.
        mtime_ns: when the file was written. One that was touched since is read wholly.
    """

    recipe: dict[str, Any]
    sha256: str
    sample_sha256: str
    mtime_ns: int


class _Unusable(Exception):
    """Why a map that is there cannot be used."""


@dataclass(frozen=True)
class Cache:
    """A map and who is where in it.

    Attributes:
        pixels: (n, size, size, 3) uint8, of all splits. They cannot be written to.
        positions: of the images of each split, (n,) int64.
    """

    pixels: Tensor
    positions: dict[str, Tensor]


def open_cache(
    path: Path,
    root: Path,
    splits: Mapping[str, Images],
    file_sizes: Mapping[str, np.ndarray],
    *,
    size: int,
    interpolation: str,
    verify: bool = False,
) -> Cache:
    """Map the pictures of all splits into memory; if there is no map of just these, build it.

    A map is taken for right when its description, its length and its date fit and some of its
    pictures have their checksum. If the date does not fit, or with ``verify``, the checksum is
    taken of all of it. A wrong one is built again, and a line says why. How the pictures are split
    does not matter.

    Args:
        path: ``<stem>.npy``.
        root: folder of the pictures.
        splits: the pictures.
        file_sizes: of the pictures of each split, in bytes.
        size: side to which the shorter side is resized before the middle is cut out.
        interpolation: of resizing.
        verify: read all of a map that is there.

    Raises:
        UserError: for a picture that cannot be read, no room on the disk, a folder that cannot be
            written to.
    """
    bytes_of = {
        name: num_bytes
        for split, images in splits.items()
        for name, num_bytes in zip(images.names, file_sizes[split].tolist(), strict=True)
    }
    names = sorted(bytes_of)
    recipe = Recipe.of(names, [bytes_of[name] for name in names], size, interpolation)
    pixels = _pixels(path, root, names, recipe, verify=verify)
    number = {name: i for i, name in enumerate(names)}
    positions = {
        split: torch.tensor([number[name] for name in images.names])
        for split, images in splits.items()
    }
    return Cache(pixels, positions)


def _pixels(path: Path, root: Path, names: list[str], recipe: Recipe, *, verify: bool) -> Tensor:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if path.exists():
                try:
                    return _open(path, recipe, verify=verify)
                except _Unusable as reason:
                    log.warning("%s is built again: %s", path, reason)
            _build(path, root, names, recipe)
            return _open(path, recipe, verify=False)
    except OSError as error:
        with suppress(_Unusable):  # a folder that cannot be written to may have the right map
            return _open(path, recipe, verify=verify)
        raise UserError(
            f"cannot write {error.filename or path}: {error.strerror or error}; "
            "set paths.data_dir= to another place"
        ) from error


def _open(path: Path, recipe: Recipe, *, verify: bool) -> Tensor:
    sidecar = _read_sidecar(path)
    if change := recipe.change_from(sidecar.recipe):
        raise _Unusable(change)
    pixels = _map(path, recipe.shape)
    if _sample_sha256(pixels) != sidecar.sample_sha256:
        raise _Unusable("its pixels have a wrong checksum")
    mtime_ns = path.stat().st_mtime_ns
    if verify or mtime_ns != sidecar.mtime_ns:
        if _file_sha256(path) != sidecar.sha256:
            raise _Unusable("its pixels have a wrong checksum")
        if mtime_ns != sidecar.mtime_ns:
            with suppress(OSError):  # else all of it is read the next time too
                _write_sidecar(path, replace(sidecar, mtime_ns=mtime_ns))
    return pixels


def _map(path: Path, shape: tuple[int, ...]) -> Tensor:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _Unusable(f"it is damaged ({' '.join(str(error).split())})") from error
    whole = isinstance(array, np.memmap) and path.stat().st_size == array.offset + array.nbytes
    if not whole or array.dtype != np.uint8 or array.shape != shape:
        raise _Unusable("it is damaged (its length does not fit)")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _build(path: Path, root: Path, names: list[str], recipe: Recipe) -> None:
    part, sidecar = path.with_suffix(".npy.part"), path.with_suffix(".json")
    for old in (part, sidecar, path):
        old.unlink(missing_ok=True)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": recipe.shape}
    )
    needed = len(header.getvalue()) + int(np.prod(recipe.shape))
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"data.cache needs {_gigabytes(needed)} for {recipe.pictures} pictures of "
            f"{recipe.size} pixels, {path.parent} has {_gigabytes(free)} left; set a smaller "
            "data.cache_size or another paths.data_dir"
        )
    log.info("building %s, %s", path, _gigabytes(needed))
    digest = hashlib.sha256(header.getvalue())
    try:
        with part.open("wb") as file:
            file.write(header.getvalue())
            with closing(decoded(root, names, recipe.size, recipe.interpolation)) as chunks:
                for pixels in chunks:
                    digest.update(pixels.numpy().data)
                    file.write(pixels.numpy().data)
            file.flush()
            os.fsync(file.fileno())
        sample = _sample_sha256(_map(part, recipe.shape))
        # First the pixels: a description never stands beside other pixels than its own.
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    mtime_ns = path.stat().st_mtime_ns
    _write_sidecar(path, Sidecar(asdict(recipe), digest.hexdigest(), sample, mtime_ns))


def _sample_sha256(pixels: Tensor) -> str:
    digest = hashlib.sha256()
    for i in np.unique(np.linspace(0, len(pixels) - 1, SAMPLE).astype(int)):
        digest.update(pixels[i].numpy().data)
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    total = path.stat().st_size
    with path.open("rb") as file, progress(f"checking {path}", total, is_bytes=True) as advance:
        while block := file.read(BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def _read_sidecar(path: Path) -> Sidecar:
    try:
        sidecar = Sidecar(**json.loads(path.with_suffix(".json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _Unusable(f"{path.stem}.json is missing or damaged") from error
    if not isinstance(sidecar.recipe, dict):
        raise _Unusable(f"{path.stem}.json is damaged")
    return sidecar


def _write_sidecar(path: Path, sidecar: Sidecar) -> None:
    handle, new = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=".json.part", dir=path.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(asdict(sidecar), file, indent=2)
    os.chmod(new, path.stat().st_mode)
    os.replace(new, path.with_suffix(".json"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("waiting for the process that builds %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
