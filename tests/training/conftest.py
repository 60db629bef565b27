"""Runs that take a second: a narrow, shallow network on digits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import SMALL, composed

from dwsep_zoo.analysis.cost import Cost, measure_cost
from dwsep_zoo.config import read_line
from dwsep_zoo.training import resume_settings, train
from dwsep_zoo.training.classifier import LitClassifier

MEASURED: dict[str, list[Cost]] = {}


def measured_once(models: Any, *conditions: Any, **options: Any) -> list[Cost]:
    """Measure quickly, and each network once: a measurement takes as long as a training."""
    key = str(([str(model) for model in models.values()], conditions, options))
    if key not in MEASURED:
        MEASURED[key] = measure_cost(models, *conditions, min_run_time=0.02, **options)
    return MEASURED[key]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """``run("folder", "conv=standard")`` trains into tmp_path/folder and returns the record.

    ``run("folder", "resume=...")`` goes on with a run; the other overrides are changes to it.
    """
    monkeypatch.setattr("dwsep_zoo.training.profile.measure_cost", measured_once)

    def run(folder: str, *overrides: str) -> dict[str, Any]:
        line = read_line(overrides)
        if resumed := line.value("resume"):
            changes = {key: line.value(key) for key in line.keys if key != "resume"}
            return train(resume_settings(Path(str(resumed)), changes)).plain()
        small = [o for o in SMALL if o.split("=", 1)[0] not in line.keys]
        settings = composed(*small, *overrides)
        places = {"output_dir": str(tmp_path / folder), "data_dir": str(tmp_path / "data")}
        return train(settings.replace(paths={**settings.paths.plain(), **places})).plain()

    return run


@pytest.fixture
def stopped_in(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int, int], AbstractContextManager[None]]:
    """Within ``stopped_in(epoch, batch)`` a run gets ctrl-C in that step and ends because of it."""
    step = LitClassifier.training_step

    @contextmanager
    def stopped_in(epoch: int, batch: int) -> Iterator[None]:
        def training_step(self: LitClassifier, images: Any, batch_idx: int) -> Any:
            if (self.current_epoch, batch_idx) == (epoch, batch):
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, images, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(LitClassifier, "training_step", training_step)
            with pytest.raises(SystemExit) as stop:
                yield
        assert stop.value.code == 130

    return stopped_in
