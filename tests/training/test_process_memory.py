"""The peak of a run's memory is not that of a run before it."""

import pytest
import torch

from dwsep_zoo.training import process_memory
from dwsep_zoo.training.process_memory import PeakMemory, keep_memory

LARGE = 50_000_000  # float32 numbers, 200 MB


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_was_freed_before_does_not_count(device):
    keep_memory()  # as every run does
    first = PeakMemory(torch.device(device))
    start = first.megabytes()
    if start is None:
        pytest.skip("this system cannot reset a peak")
    torch.ones(LARGE, device=device)
    assert first.megabytes() > start + 190
    second = PeakMemory(torch.device(device))
    assert second.megabytes() < start + 60
    torch.ones(LARGE // 2, device=device)
    assert start + 90 < second.megabytes() < start + 160


def test_where_a_peak_cannot_be_reset_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(process_memory, "_CLEAR", tmp_path / "absent" / "clear_refs")
    assert PeakMemory(torch.device("cpu")).megabytes() is None
