"""Where the bytes of pictures are: in files of their own, or in one that holds many."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from dwsep_zoo.data.decode import WHITE, opened, read_picture
from dwsep_zoo.errors import UserError

BYTES = 16  # of a checksum


class Store(ABC):
    """Pictures by their names. Worker processes have copies of it.

    Attributes:
        root: the folder, as messages name it; what is kept about the pictures depends on its path.
        background: colour below transparent pictures.
    """

    background: str = WHITE

    def __init__(self, root: Path):
        self.root = root

    @abstractmethod
    def where(self, name: str) -> str:
        """The place of a picture, as messages name it."""

    @abstractmethod
    def content(self, name: str) -> BinaryIO | Path:
        """What has the bytes of a picture.

        Raises:
            UserError: if there are none, or others than there should be.
        """

    @abstractmethod
    def state(self, name: str) -> str:
        """A text that changes when the bytes of a picture may have changed.

        Raises:
            UserError: for a picture that is empty or not there.
        """

    def ahead(self, names: Sequence[str]) -> Store:
        """Return a store that has these pictures at hand, where reading many at once is faster.

        Raises:
            UserError: if a server does not send them, which says nothing about the pictures.
        """
        return self

    def recorded(self, names: Sequence[str]) -> np.ndarray | None:
        """(n, 16) uint8: the checksums that were written down with the pictures, if there are."""
        return None

    def all_of(self, name: str) -> bytes:
        """All bytes of a picture; raises UserError if there are none."""
        content = self.content(name)
        try:
            found = content.read_bytes() if isinstance(content, Path) else content.read()
        except OSError as error:
            path = self.where(name)
            raise UserError(f"cannot read the picture {path}: {reason(error)}") from error
        if not found:
            raise UserError(f"cannot read the picture {self.where(name)}: the file is empty")
        return found

    def checksum(self, name: str) -> bytes:
        """The checksum of a picture's bytes; all of them are read."""
        return new_checksum(self.all_of(name)).digest()

    def opened(self, name: str) -> AbstractContextManager[Image.Image]:
        """Open a picture, see :func:`~dwsep_zoo.data.decode.opened`."""
        return opened(self.where(name), self.content(name))

    def read(
        self, name: str, reduction: Callable[[tuple[int, int]], int] | None = None
    ) -> Image.Image:
        """Decode a picture to RGB, see :func:`~dwsep_zoo.data.decode.read_picture`."""
        return read_picture(self.where(name), self.content(name), self.background, reduction)


class Files(Store):
    """Pictures in files of their own, below a folder."""

    def where(self, name: str) -> str:
        return os.path.join(self.root, name)

    def content(self, name: str) -> Path:
        return self.root / name

    def state(self, name: str) -> str:
        return state_of(self.where(name), name)


def state_of(path: str, name: str) -> str:
    """The state of a file, by which it counts as unchanged: its size and its time of writing."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read the picture {path}: {reason(error)}") from error
    if not found.st_size:
        raise UserError(f"cannot read the picture {path}: the file is empty")
    return f"{name}\0{found.st_size}\0{found.st_mtime_ns}"


def new_checksum(data: bytes = b"") -> hashlib.blake2b:
    """A checksum of :data:`BYTES` bytes."""
    return hashlib.blake2b(data, digest_size=BYTES)


def reason(error: OSError) -> str:
    """The reason of an error without the path."""
    return error.strerror or " ".join(str(error).split())
