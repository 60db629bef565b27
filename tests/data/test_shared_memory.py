from __future__ import annotations

from types import SimpleNamespace

import pytest

from dwsep_zoo.data import shared_memory
from dwsep_zoo.data.shared_memory import fitting_workers

MB = 10**6


@pytest.mark.parametrize(
    ("free", "batch", "loaders", "expected"),
    [
        (64 * MB, 19 * MB, 1, 0),
        (64 * MB, 9 * MB, 1, 2),
        (64 * MB, 9 * MB, 4, 0),
        (64 * MB, 1 * MB, 1, 8),
        (2_000 * MB, 19 * MB, 1, 8),
        (0, 1, 1, 0),
    ],
)
def test_workers_have_room_for_their_batches(free, batch, loaders, expected, monkeypatch, caplog):
    found = SimpleNamespace(f_bavail=free, f_frsize=1)
    monkeypatch.setattr(shared_memory.os, "statvfs", lambda path: found)
    monkeypatch.setattr(shared_memory.log, "propagate", True)
    assert fitting_workers(8, batch, loaders) == expected
    assert len(caplog.messages) == (expected < 8)
    assert fitting_workers(0, batch, loaders) == 0


def test_a_system_without_the_folder_has_no_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "nowhere")
    assert fitting_workers(8, 10**12) == 8
