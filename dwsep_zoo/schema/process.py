"""Processes: which one writes a record, and whether it is still there."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path


def this_process() -> dict[str, str | int]:
    """``pid``, ``host`` and ``started`` of the process that runs."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": _start_of(os.getpid()) or 0,
    }


def cores() -> list[int]:
    """The cores that this process may use; a scheduler may have given it some of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores_each(processes: int) -> int:
    """Cores for each of this machine's ``processes``.

    They share those of this process, unless srun started each with cores of its own.
    """
    found, own = len(cores()), 0
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        own = int(os.environ.get("SLURM_CPUS_PER_TASK") or 0)
    return max(1, found // processes, min(found, own))


def has_ended(pid: int | None, host: str | None, started: int | None) -> bool:
    """Whether a process has ended; of another machine's processes nothing is known."""
    if pid is None or host != socket.gethostname():
        return False
    return _start_of(pid) != started


def _start_of(pid: int) -> int | None:
    """When a process started, in clock ticks, 0 where the system does not tell; None: it ended."""
    try:
        if platform.system() == "Linux":
            # After the name, which may hold anything: the state, and as the 20th the start.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            return None if fields[0] in b"ZX" else int(fields[19])
        if platform.system() != "Windows":
            os.kill(pid, 0)
    except (OSError, OverflowError, ValueError, IndexError):
        return None
    return 0
