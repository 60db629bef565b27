"""Several processes at work on one sweep, each with its part of the cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import torch

import dwsep_zoo
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.process import cores
from dwsep_zoo.signals import ending, stopping
from dwsep_zoo.sweep.runs import Sweep

_START = """\
import os, sys
folder, places, *states = sys.argv[1:]
if places:  # before OpenMP counts the cores
    os.sched_setaffinity(0, map(int, places.split(",")))
from dwsep_zoo.sweep.pool import work
work(folder, states)
"""


def check_jobs(jobs: int) -> None:
    """Raises UserError for a number of processes that the machine has no cores for."""
    if not 1 <= jobs <= len(cores()):
        raise UserError(f"--jobs must be 1 to {len(cores())}, the cores here; got {jobs}")


def work_together(folder: Path, jobs: int, states: tuple[str, ...]) -> None:
    """Let several processes make the runs of a sweep that are in these states.

    Raises:
        SystemExit: with code 130 if the user stopped them; what they were at is saved.
    """
    processes = [_start(folder, number, jobs, states) for number in range(jobs)]
    readers = [
        threading.Thread(target=_pass_on, args=(process, number), daemon=True)
        for number, process in enumerate(processes, 1)
    ]
    for reader in readers:
        reader.start()
    with ending():
        try:
            for process in processes:
                process.wait()
        except KeyboardInterrupt:
            for process in processes:  # they see that and stop after their step
                assert process.stdin
                process.stdin.close()
            _wait(processes)
            print(f"stopped; the sweep goes on with: resume={folder}")
            sys.exit(130)
        finally:
            for reader in readers:
                reader.join(5)


def _wait(processes: list[subprocess.Popen[str]]) -> None:
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:  # once more: at once
        for process in processes:
            process.kill()


def _start(folder: Path, number: int, jobs: int, states: tuple[str, ...]) -> subprocess.Popen[str]:
    share, environment = _share(number, jobs)
    package = str(Path(dwsep_zoo.__file__).parents[1])
    found = os.environ.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([package, found] if found else [package])
    return subprocess.Popen(
        [sys.executable, "-c", _START, str(folder), share, *states],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # the terminal's ctrl-C is for the first process
    )


def _share(number: int, jobs: int) -> tuple[str, dict[str, str]]:
    """A process's part of the cores, and its variables: a GPU where there are several."""
    own, variables = cores(), {}
    part = own[number * len(own) // jobs : (number + 1) * len(own) // jobs]
    if not hasattr(os, "sched_setaffinity"):
        variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(len(part)))
    if (gpus := torch.cuda.device_count()) > 1:
        names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        variables["CUDA_VISIBLE_DEVICES"] = names[number % gpus]
    return ",".join(map(str, part)) if hasattr(os, "sched_setaffinity") else "", variables


def _pass_on(process: subprocess.Popen[str], number: int) -> None:
    """Print what a process says, each line with its number."""
    assert process.stdout
    for line in process.stdout:
        if line.strip():
            print(f"[{number}] {line.rstrip()}", flush=True)


def work(folder: str, states: list[str]) -> None:
    """What one of the processes does; it stops when the first one is gone."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind a shell's &
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    with stopping():
        Sweep(Path(folder)).work(tuple(states))


def _stop_with_parent() -> None:
    with suppress(OSError):
        while os.read(0, 1):  # sys.stdin could not be closed while this thread reads it
            pass
    os.kill(os.getpid(), signal.SIGINT)
