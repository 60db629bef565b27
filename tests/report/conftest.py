"""Runs made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dwsep_zoo.schema.measures import MEASURES, Measure

LATENCY = {
    "p50_ms": 4.0,
    "p10_ms": 3.9,
    "p90_ms": 4.2,
    "device": "cpu",
    "device_name": "Test CPU",
    "threads": 2,
    "batch_size": 1,
    "precision": "fp32",
    "memory_format": "channels_last",
    "runtime": "eager",
    "runs": 100,
    "stable": True,
}
RECORD: dict[str, Any] = {
    "schema": 1,
    "status": "finished",
    "error": None,
    "model": "mobilenet_v1",
    "conv": "standard",
    "conv_options": {},
    "width_mult": 1.0,
    "output_stride": 16,
    "seed": 0,
    "data": {"name": "digits", "fingerprint": "0123456789abcdef", "augment": {"flip": False}},
    "metrics": {"val/acc": 0.99, "test/acc": 0.98},
    "params": 29_294_088,
    "macs": 400_000_000,
    "input_size": [1, 32, 32],
    "latency": [LATENCY],
    "in_turns": "2026-01-01T01:00:00+00:00",
    "images_per_second": 500.0,
    "time": {"train_s": 100.0, "total_s": 110.0},
    "config": {
        "seed": 0,
        "model": {"name": "mobilenet_v1", "width_mult": 1.0, "drop_rate": None},
        "data": {"batch_size": 64, "root": "somewhere"},
        "recipe": {"epochs": 20, "lr": 0.2},
        "trainer": {"max_epochs": 20, "accelerator": "auto"},
    },
    "machine": {"cpu": "Test CPU", "threads": 2, "gpu": None},
    "finished": "2026-01-01T00:00:00+00:00",
}
MATCH = {
    "quantity": "macs",
    "to": "standard",
    "target": 400_000_000,
    "achieved": 396_000_000,
    "residual": -0.01,
    "width_mult": 2.8,
}
SEARCH = {
    "trials": 8,
    "space": {"lr": [0.01, 1.0], "weight_decay": [1e-5, 1e-2]},
    "best": {"lr": 0.3, "weight_decay": 1e-4},
    "best_val_acc": 0.9,
    "per": "variant",
    "epochs": None,
    "seed": 1000,
}
SEPARABLE = {
    "conv": "depthwise_separable",
    "conv_options": {"mid": None},
    "params": 4_231_976,
    "macs": 50_000_000,
}


MEASURE = {measure.name: measure for measure in MEASURES}


@pytest.fixture
def measure() -> dict[str, Measure]:
    """The measures by name."""
    return MEASURE


@pytest.fixture
def latency() -> dict[str, Any]:
    """An entry of ``latency``."""
    return LATENCY


@pytest.fixture
def as_separable() -> dict[str, Any]:
    """Changes to the record for a depthwise separable network."""
    return SEPARABLE


@pytest.fixture
def as_matched() -> dict[str, Any]:
    """Changes to the record for a separable network with the MACs of the standard one."""
    return SEPARABLE | {"width_mult": 2.8, "macs": 396_000_000, "match": MATCH}


@pytest.fixture
def search() -> dict[str, Any]:
    """The record of a search for the recipe."""
    return SEARCH


WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write ``runs/<name>/result.json``: a finished standard MobileNetV1, with changes.

    ``a__b=value`` changes a nested value; ``right`` are the numbers of the test images, of 50, that
    the network gets right, from which predictions.npz and the accuracy are made.
    """

    def write(name: str, *, right: Iterable[int] = (), **changes: Any) -> Path:
        record = deepcopy(RECORD) | {"name": name}
        if right:
            changes["metrics__test/acc"] = len(set(right)) / 50
        for key, value in changes.items():
            *parents, last = key.split("__")
            place = record
            for parent in parents:
                place = place[parent]
            place[last] = value
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(record))
        if right:
            label = np.arange(50) % 10
            predicted = np.where(np.isin(np.arange(50), list(right)), label, (label + 1) % 10)
            np.savez_compressed(folder / "predictions.npz", label=label, predicted=predicted)
        return folder

    return write


@pytest.fixture
def pair(write_run: WriteRun, tmp_path: Path) -> Path:
    """Standard with seeds 0, 1, 2 and separable with seeds 0, 1."""
    for seed, accuracy in enumerate((0.97, 0.98, 0.99)):
        write_run(f"standard-s{seed}", seed=seed, metrics={"test/acc": accuracy})
    for seed, accuracy in enumerate((0.96, 0.98)):
        write_run(
            f"separable-s{seed}",
            seed=seed,
            metrics={"test/acc": accuracy},
            latency=[LATENCY | {"p50_ms": 2.0 + 2 * seed}],
            time={"train_s": 50.0 + 20 * seed},
            **SEPARABLE,
        )
    return tmp_path / "runs"
