"""Two processes on the CPU: one set of logs, and every image counted once."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_helpers import load_data

TRAIN = Path(__file__).parents[2] / "train.py"


def test_two_processes(tmp_path):
    command = [
        *(sys.executable, str(TRAIN), "trainer=ddp", "trainer.accelerator=cpu"),
        *("trainer.devices=2", "trainer.max_epochs=2", "model=mobilenet_v1"),
        # 179 validation images in batches of 89: one process has one batch, the other has two
        *("model.width_mult=0.25", "data.batch_size=89"),
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = tmp_path.glob("logs/train/runs/*")
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    with (run / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert done.stdout.count("epoch   1/2") == 1
    assert (run / "train.log").read_text().count("epoch   1/2") == 1
    # the images in order, as one process would have them
    predictions = np.load(run / "predictions.npz")
    data = load_data()
    assert predictions["label"].tolist() == data.splits["test"].labels.tolist()
    right = (predictions["label"] == predictions["predicted"]).mean()
    assert right == pytest.approx(result["metrics"]["test/acc"], abs=1e-6)
    # the accuracy is a whole number of images
    for split in ("val", "test"):
        images = result["data"]["splits"][split] * result["metrics"][f"{split}/acc"]
        assert abs(images - round(images)) < 1e-3
