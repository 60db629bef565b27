"""Small helpers for files and run folders."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dwsep_zoo.errors import UserError


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: readers see the old content or the new one, never a part."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds the runs of one sweep; Hydra writes ``multirun.yaml`` into it."""
    return (folder / "multirun.yaml").is_file()


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
