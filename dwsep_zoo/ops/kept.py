"""Choices among kernels, kept in the user's cache from one process to the next.

Timing them again would take every run some seconds. A choice holds for the same GPUs, driver,
versions and kernels, which the name of the file stands for.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from dwsep_zoo.files import atomic_write, cache_folder

log = logging.getLogger("dwsep_zoo")

SOURCES = ("cuda.py", "triton_common.py", "triton_depthwise.py")
DRIVER = Path("/proc/driver/nvidia/version")


class Kept:
    """Names by key, in a file.

    A file that is damaged counts as empty and is written anew; one that cannot be written is left.

    Args:
        path: the file; ``None``: nothing is kept.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.names = self._read()
        self.is_new = True

    def get(self, key: object) -> str | None:
        return self.names.get(repr(key))

    def announce(self) -> None:
        """Say, once, that something has to be timed."""
        if self.is_new and self.path:
            log.info("timing depthwise kernels on this GPU, once: %s keeps the choices", self.path)
        self.is_new = False

    def add(self, key: object, name: str) -> None:
        if self.path is None:
            return
        self.names = {**self._read(), **self.names, repr(key): name}  # others write too
        with suppress(OSError):
            atomic_write(self.path, json.dumps(self.names, indent=1))

    def _read(self) -> dict[str, str]:
        try:
            names = json.loads(self.path.read_bytes()) if self.path else {}
        except (OSError, ValueError):
            return {}
        plain = isinstance(names, dict) and all(isinstance(name, str) for name in names.values())
        return names if plain else {}


@functools.cache
def kept() -> Kept:
    """The choices of this machine's GPUs; none without a GPU."""
    folder = cache_folder() if torch.cuda.is_available() else None
    return Kept(folder and folder / file_name(_machine()))


def _machine() -> list[str]:
    from dwsep_zoo.ops.triton_common import triton  # takes seconds to import

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    driver = DRIVER.read_text() if DRIVER.exists() else ""
    versions = [str(torch.version.cuda), torch.__version__, getattr(triton, "__version__", "")]
    return [*gpus, driver, *versions]


def file_name(machine: Sequence[str]) -> str:
    """The name of the file for a machine in words, and for the kernels as they are."""
    digest = hashlib.sha256(json.dumps(machine).encode())
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return f"kernels-{digest.hexdigest()[:16]}.json"
