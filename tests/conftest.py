"""What all tests share."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)  # the tests' tensors are too small to share among cores


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Each test draws the same random numbers whichever tests ran before it."""
    torch.manual_seed(0)
