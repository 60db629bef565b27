"""Shared memory, in which worker processes hand over their batches; containers have little."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger("dwsep_zoo")

FOLDER = Path("/dev/shm")
BATCHES_AHEAD = 2  # of each worker, the DataLoader's default
BATCHES_IN_USE = 2  # read, and copied to the device


def fitting_workers(wanted: int, batch_bytes: int, loaders: int = 1) -> int:
    """As many worker processes as their batches have room for, with a warning if it is fewer.

    A worker that finds no room would wait for ever, or be killed.

    Args:
        wanted: processes.
        batch_bytes: size of a batch.
        loaders: processes of the training that do the same at once.
    """
    free = _free()
    if not wanted or free is None:
        return wanted
    batches = free // max(1, batch_bytes * loaders)
    fitting = max(0, min(wanted, (batches - BATCHES_IN_USE) // BATCHES_AHEAD))
    if fitting < wanted:
        log.warning(
            "%s has %.0f MB free: %d of %d decoding processes are used; a container gets more with "
            "--shm-size",
            FOLDER,
            free / 1e6,
            fitting,
            wanted,
        )
    return fitting


def _free() -> int | None:
    """Bytes, or ``None`` on a system that has no such folder."""
    try:
        found = os.statvfs(FOLDER)
    except (AttributeError, OSError):
        return None
    return found.f_bavail * found.f_frsize
