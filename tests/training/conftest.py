"""Runs that take a second: a narrow network on digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dwsep_zoo.config import compose_config
from dwsep_zoo.training import train

SMALL = (
    "model=mobilenet_v1",
    "model.width_mult=0.125",
    "trainer.max_epochs=2",
    "trainer.precision=32-true",
    "+trainer.limit_train_batches=4",
    "data.batch_size=32",
)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``run("folder", "conv=standard")`` trains into tmp_path/folder and returns the result."""

    def run(folder: str, *overrides: str) -> dict[str, Any]:
        paths = [f"paths.output_dir={tmp_path / folder}", f"paths.data_dir={tmp_path / 'data'}"]
        changed = {o.lstrip("+").split("=", 1)[0] for o in overrides}
        small = [o for o in SMALL if o.lstrip("+").split("=", 1)[0] not in changed]
        return train(compose_config([*small, *paths, *overrides]))

    return run
