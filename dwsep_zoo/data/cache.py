"""Pictures that were decoded and resized once, in a file that is mapped into memory.

A map is ``<stem>.npy``, readable by ``numpy.load``, with its description and checksum beside it in
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.features
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from dwsep_zoo.data.pictures import decoded
from dwsep_zoo.data.splits import Images
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import atomic_write, sha256_of

log = logging.getLogger("dwsep_zoo")


Description = dict[str, int | str | None]
"""Everything that the pixels of a map depend on."""


class _Unusable(Exception):
    """The reason why an existing map cannot be used."""


@dataclass(frozen=True)
class Cache:
    """A memory map and each split's indices.

    Attributes:
        pixels: (n, size, size, 3) uint8, of all splits, read-only.
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
    """Map the pictures of all splits into memory, and build the map if it does not exist.

    A map whose description or length is wrong is built again, and a line says why. The choice of
    splits does not matter.

    Args:
        path: ``<stem>.npy``.
        root: folder of the pictures.
        splits: the pictures.
        file_sizes: of the pictures of each split, in bytes.
        size: side to which the shorter side is resized before the middle is cut out.
        interpolation: of resizing.
        verify: read all of an existing map and compare its checksum.

    Raises:
        UserError: for a picture that cannot be read, no room on the disk, or a folder that cannot
            be written to.
    """
    bytes_of = {
        name: num_bytes
        for split, images in splits.items()
        for name, num_bytes in zip(images.names, file_sizes[split].tolist(), strict=True)
    }
    names = sorted(bytes_of)
    description = _describe(names, [bytes_of[name] for name in names], size, interpolation)
    shape = (len(names), size, size, 3)
    header = _header(shape)
    num_bytes = len(header) + math.prod(shape)

    def build() -> None:
        _check_space(path.parent, num_bytes, f"{len(names)} pictures of {size} pixels")
        log.info("building %s, %.3g GB", path, num_bytes / 1e9)
        with closing(decoded(root, names, size, interpolation)) as chunks:
            _write(path, description, header, chunks)

    pixels = _open_or_build(path, description, num_bytes, build, verify=verify)
    number = {name: i for i, name in enumerate(names)}
    positions = {
        split: torch.tensor([number[name] for name in images.names])
        for split, images in splits.items()
    }
    return Cache(pixels, positions)


def _describe(
    names: list[str], file_sizes: list[int], size: int, interpolation: str
) -> Description:
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape"))
    digest.update(np.array(file_sizes, dtype="<i8").tobytes())
    return {
        "pictures": len(names),
        "fingerprint": digest.hexdigest(),
        "size": size,
        "interpolation": interpolation,
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
        raise UserError(
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
    if verify and _sha256(path) != sha256:
        raise _Unusable("its pixels have a wrong checksum")
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
        raise UserError(
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
    saved = {"recipe": description, "sha256": digest.hexdigest()}
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
