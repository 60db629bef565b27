"""Sharing cores: what the system reports, what follows, and what becomes of the threads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dwsep_zoo.analysis.device import torch_threads
from dwsep_zoo.analysis.neighbours import cores_for
from dwsep_zoo.training import neighbours
from dwsep_zoo.training.neighbours import CALM, CROWDED, PATIENCE, Policy, shared_cores

linux = pytest.mark.skipif(not neighbours.STATISTICS.exists(), reason="Linux counts the times")
HIGH, MIDDLE, LOW = CROWDED + 0.1, (CROWDED + CALM) / 2, CALM / 2


@pytest.fixture
def one_core() -> Iterator[None]:
    """Within, the process has one core, so that the machine's other work matters little."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@linux
def test_a_busy_program_takes_its_share(one_core):
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        shared = cores_for(1, 0.3)
        other.kill()
    assert 0.05 < shared < 0.9
    assert cores_for(1, 0.3) > shared
    assert cores_for(3, 0.3) < 1.1


@pytest.mark.parametrize(
    ("waited", "restrained"),
    [
        ([LOW, MIDDLE, LOW], [0, 0, 0]),
        ([HIGH, MIDDLE, MIDDLE], [1, 1, 1]),
        ([HIGH, *[LOW] * PATIENCE], [1] * PATIENCE + [0]),
        ([HIGH, *[LOW] * (PATIENCE - 1), MIDDLE, LOW], [1] * (PATIENCE + 2)),
        # What was believed wrongly is believed half as easily.
        (
            [HIGH, *[LOW] * PATIENCE, HIGH, *[LOW] * 2 * PATIENCE],
            [1] * PATIENCE + [0] + [1] * 2 * PATIENCE + [0],
        ),
    ],
)
def test_threads_are_restrained_while_the_program_waits(waited, restrained):
    policy = Policy()
    assert [policy.decide(part) for part in waited] == restrained


@pytest.fixture
def reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file in which the system reports, with two threads that compute."""
    file = tmp_path / "schedstat"
    monkeypatch.setattr(neighbours, "STATISTICS", file)
    monkeypatch.setattr(neighbours, "INTERVAL", 0.02)
    for variable in neighbours.CHOSEN:
        monkeypatch.delenv(variable, raising=False)
    file.write_text("100 0 1")
    with torch_threads(2):
        yield file


def until(count: int, threads: int) -> bool:
    """Whether the process comes to have so many threads."""
    for _ in range(200):
        if len(os.listdir("/proc/self/task")) - threads == count:
            return True
        time.sleep(0.01)
    return False


@linux
def test_more_threads_than_cores_are_kept_while_cores_are_needed(reported, caplog):
    """With which OpenMP has its own sleep at once; see the test below."""
    caplog.set_level("INFO")
    if not neighbours.openmp():
        pytest.skip("PyTorch brings another OpenMP here")
    threads = len(os.listdir("/proc/self/task"))
    with shared_cores():
        assert until(1, threads)  # the one that watches
        reported.write_text("150 50 1")
        copies = len(neighbours.openmp())
        assert until(2 + copies * os.cpu_count(), threads)
        ran = 150
        while not until(1, threads):
            ran += 100
            reported.write_text(f"{ran} 50 1")
    assert until(0, threads)
    assert [record.getMessage() for record in caplog.records] == list(neighbours.LINES)


@linux
@pytest.mark.parametrize("variable", [*neighbours.CHOSEN, None])
def test_the_user_decides(reported, monkeypatch, variable):
    if variable:
        monkeypatch.setenv(variable, "1")
    else:
        torch.set_num_threads(1)
    reported.write_text("0 100 1")
    threads = len(os.listdir("/proc/self/task"))
    with shared_cores():
        time.sleep(0.05)
        assert len(os.listdir("/proc/self/task")) == threads


# A process of its own: others have threads enough already.
PROGRAM = """
import time, torch
from dwsep_zoo.training.neighbours import Restraint, openmp

x = torch.zeros(1 << 18)
torch.set_num_threads(2)

def spun():
    busy = []
    for _ in range(30):
        x.add_(1)
        begin = time.process_time()
        time.sleep(0.02)
        busy.append(time.process_time() - begin)
    return max(busy)

spun()
restraint = Restraint(openmp())
for restrained in (False, True, False):
    restraint.set(restrained)
    time.sleep(0.1)
    print(spun())
restraint.set(False)
"""


@linux
@pytest.mark.slow
def test_threads_sleep_at_once_while_they_are_restrained():
    """The processor's time in which there is nothing to do, as it is measured."""
    variables = {*neighbours.CHOSEN, "OMP_NUM_THREADS"}
    environment = {key: value for key, value in os.environ.items() if key not in variables}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    before, restrained, after = map(float, done.stdout.split())
    assert 2 * restrained < min(before, after)
