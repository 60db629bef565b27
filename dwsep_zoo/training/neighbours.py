"""Cores that are shared with other programs.

A thread of OpenMP that waits for others looks again and again, some ten milliseconds long, before
it sleeps. That is fastest alone. Beside another program it keeps a core from the very thread that
it waits for, and two trainings slow each other down by an order of magnitude. While the system
reports that this program waits for cores, its threads therefore sleep at once. Their number stays,
and so do the results, to the last bit.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

log = logging.getLogger("dwsep_zoo")

STATISTICS = Path("/proc/self/schedstat")
"""Linux: nanoseconds that the main thread has run, and has waited for a core."""
MAPS = Path("/proc/self/maps")
CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables with which the user decides himself."""
INTERVAL = 0.5  # seconds
CROWDED, CALM = 0.2, 0.05
"""Parts of its time that the program waits for a core: neighbours compute, or do not."""
PATIENCE = 4
"""Calm intervals after which it is believed; twice as many each time that was wrong."""

LINES = (
    "other programs need the cores: threads that wait leave theirs, which changes no result",
    "other programs are done: threads that wait keep their cores",
)
"""At the first change and at the second."""


@contextmanager
def shared_cores() -> Iterator[None]:
    """Within, threads that wait for others leave their cores to other programs that need them."""
    libraries = openmp()
    if not libraries or torch.get_num_threads() == 1 or set(CHOSEN) & set(os.environ):
        yield
        return
    end = threading.Event()
    watch = threading.Thread(target=_watch, args=(Restraint(libraries), end), daemon=True)
    watch.start()
    try:
        yield
    finally:
        end.set()
        watch.join()


class Policy:
    """Decides whether waiting threads should sleep at once."""

    def __init__(self) -> None:
        self.restrained = False
        self.patience, self.calm = PATIENCE, 0

    def decide(self, waited: float) -> bool:
        """Decide for the next interval, from the part of the last one that was spent waiting."""
        self.calm = self.calm + 1 if waited < CALM else 0
        if not self.restrained:
            self.restrained = waited > CROWDED
        elif self.calm >= self.patience:
            self.restrained = False
            self.patience *= 2
        return self.restrained


class Restraint:
    """Has the threads of GNU's OpenMP sleep at once when they wait.

    It does so itself when a process has more of its threads than cores. While they are restrained,
    a thread of Python keeps enough others, which do nothing.
    """

    def __init__(self, libraries: list[ctypes.CDLL]):
        self.libraries = libraries
        self.end = threading.Event()
        self.keeper: threading.Thread | None = None

    def set(self, restrained: bool) -> None:
        """Restrain the threads or no longer; nothing happens if they are that way."""
        if restrained and self.keeper is None:
            self.end.clear()
            self.keeper = threading.Thread(target=self._keep, daemon=True)
            self.keeper.start()
        elif self.keeper and not restrained:
            self.end.set()  # the threads end with the one that keeps them
            self.keeper.join()
            self.keeper = None

    def _keep(self) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # of a null pointer
        for library in self.libraries:
            library.GOMP_parallel(nothing, None, (os.cpu_count() or 1) + 1, 0)
        self.end.wait()


def openmp() -> list[ctypes.CDLL]:
    """The copies of GNU's OpenMP in this process, where the system counts times of waiting."""
    if not STATISTICS.exists():
        return []
    words = (line.split() for line in MAPS.read_text().splitlines())
    paths = {line[-1] for line in words if "libgomp" in os.path.basename(line[-1])}
    libraries = [ctypes.CDLL(path) for path in sorted(paths)]
    for library in libraries:
        pointer = ctypes.c_void_p
        library.GOMP_parallel.argtypes = [pointer, pointer, ctypes.c_uint, ctypes.c_uint]
    return libraries


def _watch(restraint: Restraint, end: threading.Event) -> None:
    policy, said = Policy(), 0
    ran, waited = 0, 0  # at first since the program began
    while not end.is_set():
        before = ran, waited
        ran, waited = map(int, STATISTICS.read_text().split()[:2])
        took = (ran - before[0]) + (waited - before[1])
        restrained = policy.decide((waited - before[1]) / took if took else 0.0)
        restraint.set(restrained)
        if said < len(LINES) and restrained == (said == 0):
            log.info(LINES[said])
            said += 1
        end.wait(INTERVAL)
    restraint.set(False)
