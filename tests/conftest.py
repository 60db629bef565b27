"""What all tests share."""

from __future__ import annotations

import gc
import logging
from types import SimpleNamespace
from weakref import WeakValueDictionary

import pytest
import torch
from helpers import load_kernels_again

torch.set_num_threads(1)  # the tests' tensors are too small to share among cores


def pytest_collection_finish() -> None:
    """What was imported and collected stays: to search it for garbage takes half of a small run."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Each test draws the same random numbers whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def own_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra closes all handlers that it finds, and some close pytest's streams."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    monkeypatch.setattr(logging, "_handlers", WeakValueDictionary())
    monkeypatch.setattr(logging, "_handlerList", [])


@pytest.fixture(scope="session")
def loaded() -> SimpleNamespace:
    # Older interpreters fail with newer versions of NumPy, and leave Triton's language changed.
    pytest.importorskip("triton", minversion="3.9")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        return load_kernels_again(patch)


@pytest.fixture
def interpreted(loaded: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules, by their names, with kernels that run on the CPU."""
    language = loaded.triton_common.tl
    for function in ("sum", "max"):  # decorated when Triton was imported
        monkeypatch.setattr(language, function, getattr(language, function).fn)
    return loaded
