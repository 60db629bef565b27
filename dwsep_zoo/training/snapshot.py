"""The folder of a run as it was before the run began."""

from __future__ import annotations

import shutil
from pathlib import Path

from dwsep_zoo.files import atomic_write
from dwsep_zoo.schema.record import FILE_NAME

CHANGED = (FILE_NAME, "metrics.csv", "train.log")
"""Files that are changed before the first step; all others are new then."""


class Snapshot:
    """Keeps what a run changes before its first step, in a folder that exists."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names = {path.name for path in folder.iterdir()}
        files = [folder / name for name in CHANGED]
        self.contents = {file: file.read_bytes() for file in files if file.is_file()}

    def restore(self) -> None:
        """Make the folder as it was; a folder of nothing but Hydra's settings goes."""
        if self.names <= {".hydra"}:
            shutil.rmtree(self.folder)
            return
        for path in self.folder.iterdir():
            if path.name in self.names:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        for file, content in self.contents.items():
            if file.read_bytes() != content:
                atomic_write(file, content)
