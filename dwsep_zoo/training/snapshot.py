"""The folder of a run as it was before the run began."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from dwsep_zoo.files import atomic_write
from dwsep_zoo.schema.record import FILE_NAME

CHANGED = (FILE_NAME, "metrics.csv", "train.log")
"""Files that a run changes before its first step, or makes."""
MADE = ("events.out.tfevents.*", "match-*.json", "search-*.json")
"""Others that it makes."""


class Snapshot:
    """Keeps what a run changes before its first step, in a folder that exists."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names = {path.name for path in folder.iterdir()}
        files = [folder / name for name in CHANGED]
        self.contents = {file: file.read_bytes() for file in files if file.is_file()}

    def restore(self) -> None:
        """Make the folder as it was; one that held nothing, or Hydra's settings alone, goes."""
        for path in self.folder.iterdir():
            made = path.name in CHANGED or any(path.match(pattern) for pattern in MADE)
            if made and path.name not in self.names:
                path.unlink()
        for file, content in self.contents.items():
            if file.read_bytes() != content:
                atomic_write(file, content)
        if self.names <= {".hydra"}:
            shutil.rmtree(self.folder / ".hydra", ignore_errors=True)
            with suppress(OSError):
                self.folder.rmdir()
