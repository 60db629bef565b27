"""Pictures that were decoded and resized once, in a file that is mapped into memory.

Pictures that are trained from memory come from such a file too: the next run decodes nothing. A map
is ``<stem>.npy``, readable by ``numpy.load``, with its description and checksum beside it in
``<stem>.json``. It is written under another name and renamed when it is complete. Processes that
want the same map wait for the one that builds it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.features
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from dwsep_zoo.data.decode import DECODING, WHITE
from dwsep_zoo.data.memory import check_memory
from dwsep_zoo.data.pictures import CHUNK, decoded
from dwsep_zoo.data.splits import Images
from dwsep_zoo.data.store import BYTES, Store
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import atomic_write, sha256_of

log = logging.getLogger("dwsep_zoo")


Description = dict[str, int | str | None]
"""Everything that the pixels of a map depend on."""


class _Unusable(Exception):
    """The reason why an existing map cannot be used."""


class _NotKept(UserError):
    """The reason why a map cannot be written."""


@dataclass(frozen=True)
class Pictures:
    """Files, and the form in which their pixels are wanted.

    Attributes:
        store: has them.
        splits: their names.
        contents: of each split's files, see :func:`~dwsep_zoo.data.contents.checksums`.
        size: side to which the shorter side is resized before the middle is cut out.
        interpolation: of resizing.
    """

    store: Store
    splits: Mapping[str, Images]
    contents: Mapping[str, np.ndarray]
    size: int
    interpolation: str

    @cached_property
    def names(self) -> list[str]:
        """Names of all files in the order of a map, which does not depend on the splits."""
        return sorted({name for images in self.splits.values() for name in images.names})

    def positions(self) -> dict[str, Tensor]:
        """Where the images of each split are in that order, (n,) int64."""
        number = {name: i for i, name in enumerate(self.names)}
        return {
            split: torch.tensor([number[name] for name in images.names], dtype=torch.int64)
            for split, images in self.splits.items()
        }

    def decoded(self) -> Generator[Tensor, None, None]:
        """The pixels in that order, see :func:`~dwsep_zoo.data.pictures.decoded`."""
        return decoded(self.store, self.names, self.size, self.interpolation)


@dataclass(frozen=True)
class Cache:
    """A memory map and each split's indices.

    Attributes:
        pixels: (n, size, size, 3) uint8, of all splits, read-only.
        positions: of the images of each split, (n,) int64.
    """

    pixels: Tensor
    positions: dict[str, Tensor]


def open_cache(path: Path, pictures: Pictures, *, verify: bool = False) -> Cache:
    """Map the pictures of all splits into memory, and build the map if it does not exist.

    A map that another program wrote to, or whose description or length is wrong, is built again,
    and a line says why.

    Args:
        path: ``<stem>.npy``.
        pictures: those of all splits.
        verify: read all of an existing map and compare its checksum.

    Raises:
        UserError: for a picture that cannot be read, no room on the disk, or a folder that cannot
            be written to.
    """
    description = _describe(pictures)
    shape = (len(pictures.names), pictures.size, pictures.size, 3)
    header = _header(shape)
    num_bytes = len(header) + math.prod(shape)

    def build() -> None:
        _check_space(path.parent, num_bytes, f"{shape[0]} pictures of {pictures.size} pixels")
        log.info("building %s, %.3g GB", path, num_bytes / 1e9)
        with closing(pictures.decoded()) as chunks:
            _write(path, description, header, chunks)

    pixels = _open_or_build(path, description, num_bytes, build, verify=verify)
    return Cache(pixels, pictures.positions())


def read_all(paths: Sequence[Path], pictures: Pictures) -> dict[str, Images]:
    """Read all pictures into memory, from a map if there is one or it can be built.

    Args:
        paths: places of the map; the first that can be written to is taken. Without any, the
            pictures are decoded, and a line says why.
        pictures: those of all splits.

    Returns:
        The images of each split with their pixels.

    Raises:
        UserError: for a picture that cannot be read, or too little memory.
    """
    parts = {id(images): split for split, images in pictures.splits.items()}  # val may be test
    check_memory(len(pictures.names), pictures.size, bytes_per_pixel=3)
    cache = _opened_or_decoded(paths, pictures)
    rows = cache.pixels.flatten(1)
    found = {}
    for key, split in parts.items():
        pixels = rows.index_select(0, cache.positions[split]).view(-1, *cache.pixels.shape[1:])
        found[key] = replace(pictures.splits[split], pixels=pixels)
    return {split: found[id(images)] for split, images in pictures.splits.items()}


def _opened_or_decoded(paths: Sequence[Path], pictures: Pictures) -> Cache:
    reasons = []
    for path in paths:
        try:
            return open_cache(path, pictures)
        except _NotKept as reason:
            reasons.append(str(reason))
    log.warning("decoded pictures are not kept: %s", "; ".join(reasons) or "there is no folder")
    side = pictures.size
    pixels = torch.empty((len(pictures.names), side, side, 3), dtype=torch.uint8)
    for own, chunk in zip(pixels.split(CHUNK), pictures.decoded(), strict=True):
        own.copy_(chunk)
    return Cache(pixels, pictures.positions())


def _describe(pictures: Pictures) -> Description:
    digest = hashlib.sha256("\0".join(pictures.names).encode("utf-8", "surrogateescape"))
    contents = np.zeros((len(pictures.names), BYTES), dtype=np.uint8)
    for split, positions in pictures.positions().items():
        contents[positions] = pictures.contents[split]
    digest.update(contents.tobytes())
    background = pictures.store.background
    return {
        "decoding": DECODING,
        "pictures": len(pictures.names),
        "fingerprint": digest.hexdigest(),
        "size": pictures.size,
        "interpolation": pictures.interpolation,
        "background": None if background == WHITE else background,  # as older maps have it
        "pillow": PIL.__version__,
        "libjpeg_turbo": PIL.features.version("libjpeg_turbo"),
    }


def _header(shape: tuple[int, ...]) -> bytes:
    """The first bytes of a ``.npy`` file of uint8 numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _open_or_build(
    path: Path, description: Description, num_bytes: int, build: Callable[[], None], *, verify: bool
) -> Tensor:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if path.exists():
                try:
                    return _open(path, description, num_bytes, verify=verify)
                except _Unusable as reason:
                    log.warning("%s is built again: %s", path, reason)
            for old in (path.with_suffix(".npy.part"), path.with_suffix(".json"), path):
                old.unlink(missing_ok=True)
            build()
            return _open(path, description, num_bytes, verify=False)
    except OSError as error:
        with suppress(_Unusable):  # a folder that cannot be written to may have the right map
            return _open(path, description, num_bytes, verify=verify)
        raise _NotKept(
            f"cannot write {error.filename or path}: {error.strerror or error}; "
            "set paths.data_dir= to another place"
        ) from error


def _open(path: Path, description: Description, num_bytes: int, *, verify: bool) -> Tensor:
    try:
        saved = json.loads(path.with_suffix(".json").read_text())
        recipe, sha256 = dict(saved["recipe"]), saved["sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _Unusable(f"{path.stem}.json is missing or damaged") from error
    for key, own in description.items():
        if recipe.get(key) != own:
            if key in ("pictures", "fingerprint"):
                raise _Unusable("pictures were added, removed or changed")
            raise _Unusable(f"{key} was {recipe.get(key)} and is {own}")
    if path.stat().st_size != num_bytes:
        raise _Unusable("it is damaged (its length is wrong)")
    touched = saved.get("written_ns") != path.stat().st_mtime_ns
    if (verify or touched) and _sha256(path) != sha256:
        raise _Unusable("its pixels have a wrong checksum")
    if touched:  # a copy, say
        with suppress(OSError):
            _write_description(path, recipe, sha256)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _Unusable(f"it is damaged ({' '.join(str(error).split())})") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _check_space(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _NotKept(
            f"data.cache needs {needed / 1e9:.3g} GB for {what}, {folder} has {free / 1e9:.3g} GB "
            "left; set a smaller data.cache_size or another paths.data_dir"
        )


def _write(path: Path, description: Description, header: bytes, chunks: Iterable[Tensor]) -> None:
    """Write the map, then its description, which thus never describes other pixels."""
    part, digest = path.with_suffix(".npy.part"), hashlib.sha256(header)
    try:
        with part.open("wb") as file:
            file.write(header)
            for pixels in chunks:
                digest.update(pixels.numpy().data)
                file.write(pixels.numpy().data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    _write_description(path, description, digest.hexdigest())


def _write_description(path: Path, description: Description, sha256: str) -> None:
    """Write the file beside a map; another time of writing than it says is that of an edit."""
    written = path.stat().st_mtime_ns
    saved = {"recipe": description, "sha256": sha256, "written_ns": written}
    atomic_write(path.with_suffix(".json"), json.dumps(saved, indent=2))


def _sha256(path: Path) -> str:
    log.info("checking %s", path)
    return sha256_of(path)


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
