"""Files and run folders: replaced as a whole or not at all, checked, and locked."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from dwsep_zoo.errors import UserError

_TOKEN = secrets.token_hex(4)
"""Tells apart processes with the same number, in containers that share a folder."""
_locks: set[int] = set()
"""Descriptors of the locks that this process holds."""


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: readers see the old content or the new one, never a part.

    Raises:
        OSError: which names the file.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Replace files once all new ones are on the disk; if one cannot be written, none changes.

    Raises:
        OSError: which names the file.
    """
    try:
        for path, content in contents.items():
            data = content if isinstance(content, bytes) else content.encode()
            write_part(path, partial(_write_all, data))
        for path in contents:
            os.replace(part_of(path), path)
    finally:
        for path in contents:
            part_of(path).unlink(missing_ok=True)
    for folder in {path.parent for path in contents}:
        sync_folder(folder)


def _write_all(data: bytes, file: HashedFile) -> None:
    file.write(data)


def part_of(path: Path) -> Path:
    """The new content of ``path`` while it is written."""
    return path.with_name(f"{path.name}.{os.getpid()}-{_TOKEN}.part")


def write_part(path: Path, write: Callable[[HashedFile], object]) -> str:
    """Write the new content of ``path`` beside it, down to the disk.

    Args:
        path: the file to be replaced; it is not touched.
        write: writes the content into a file.

    Returns:
        Its SHA-256.

    Raises:
        OSError: which names ``path``; no part is left then.
    """
    part = part_of(path)
    hashed = None
    try:
        with part.open("wb") as raw:
            hashed = HashedFile(raw)
            write(hashed)
            raw.flush()
            os.fsync(raw.fileno())
    except BaseException as error:
        part.unlink(missing_ok=True)
        # PyTorch's writer turns the error of a full disk into one of its own.
        cause = hashed.error if hashed and hashed.error else error
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error
        raise
    return hashed.digest.hexdigest()


class HashedFile:
    """A file that hashes what is written into it, and keeps the error of a write that failed."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checksum_of(path: Path) -> Path:
    """The file beside ``path`` that holds its SHA-256."""
    return path.with_name(f"{path.name}.sha256")


def check_intact(path: Path) -> None:
    """Compare a file with the checksum beside it or, in a .zip file without one, with its own.

    Raises:
        UserError: if its bytes are not those that were written.
        OSError: if it cannot be read.
    """
    checksum = checksum_of(path)
    if checksum.is_file():
        if checksum.read_bytes().strip() != sha256_of(path).encode():
            raise UserError(f"{path}: damaged; its SHA-256 is not the one in {checksum.name}")
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                raise UserError(f"{path}: damaged in {part}")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file, which is made if there is none, for as long as this process lives.

    Yields:
        Whether it is this process that holds the lock. Where a file system has no locks, it is.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _locks.add(descriptor)
    try:
        yield _lock(descriptor, tries=10)
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process that lives has locked a file."""
    if not path.is_file():
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:  # not ours to write
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, tries: int = 1) -> bool:
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:  # Windows
        return True
    for number in range(tries):
        time.sleep(0.05 * (number > 0))  # is_locked holds the lock for a moment
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            continue
        except OSError:
            pass
        return True
    return False


def _forget_locks() -> None:
    """In a forked worker, which may outlive the process that holds the lock."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds the runs of one sweep; earlier versions left Hydra's file in it."""
    return any((folder / name).is_file() for name in ("sweep.json", "multirun.yaml"))


def check_writable(key: str, folder: Path) -> None:
    """Raises UserError if a folder, or its nearest existing parent, takes no new file."""
    parent = folder.absolute()
    try:
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise NotADirectoryError(20, "Not a directory")
        with tempfile.NamedTemporaryFile(dir=parent) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except OSError as error:
        raise UserError(f"cannot write to {key}={folder}: {error.strerror}") from error


def cache_folder() -> Path | None:
    """Return the user's cache folder, or ``None`` if it is not writable."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base, "dwsep_zoo")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # no home directory
        return None
