"""Small helpers for files and run folders."""

from __future__ import annotations

import os
from pathlib import Path


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
