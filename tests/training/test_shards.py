"""Training from shards: every picture once an epoch, and a run that is killed ends as it would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_helpers import data_settings, in_process, load_data
from helpers import SMALL, different, last_weights
from PIL import Image

from dwsep_zoo.data import create_data
from dwsep_zoo.data.pack import pack

TRAIN = Path(__file__).parents[2] / "train.py"
COUNT = 120


@pytest.fixture
def packed(tmp_path) -> Path:
    """Shards of pictures of four classes: those of DWSEP_DATA, or of one colour each."""
    folder = tmp_path / "pictures"
    for i in range(4):
        (folder / str(i)).mkdir(parents=True)
    if "DWSEP_DATA" in os.environ:
        with tarfile.open(Path(os.environ["DWSEP_DATA"], "imagenet-samples-200.tar")) as archive:
            members = [member for member in archive.getmembers() if member.isfile()][:COUNT]
            for i, member in enumerate(members):
                path = folder / str(i % 4) / f"{i}.jpg"
                path.write_bytes(archive.extractfile(member).read())
    else:
        for i in range(COUNT):
            Image.new("RGB", (40, 30), (i, 2 * i, 0)).save(folder / str(i % 4) / f"{i}.png")
    settings = data_settings("folder", root=str(folder))
    size = sum(path.stat().st_size for path in folder.rglob("*.*"))
    pack(create_data(settings, seed=0, data_dir=tmp_path), tmp_path / "packed", size // 5)
    return tmp_path / "packed"


def test_every_picture_is_read_once_an_epoch(packed):
    """By two processes with two workers each, also if the epoch is resumed in its middle."""
    options = {"root": str(packed), "image_size": 8, "batch_size": 4, "num_workers": 2,
               "in_memory": False, "augment": {"flip": False, "scale": [1, 1]}}  # fmt: skip
    seen: Counter[bytes] = Counter()
    for rank in range(2):
        loader = in_process(load_data("webdataset", **options), rank, 2).train_dataloader()
        begun = [batch for _, batch in zip(range(4), loader, strict=False)]
        again = in_process(load_data("webdataset", **options), rank, 2).train_dataloader()
        again.load_state_dict(loader.state_dict())
        rest = list(again)
        assert len(begun) + len(rest) == len(loader) == 10
        seen.update(image.numpy().tobytes() for b in begun + rest for image in b.images)
    assert len(seen) == seen.total() == 80  # of 84 images, 2 x 42 = 2 x (10 x 4 + 2)


def _settings(packed: Path) -> list[str]:
    return ["data=webdataset", f"data.root={packed}", "data.image_size=32", "data.in_memory=false",
            "data.num_workers=2", "profile.runtimes=[eager]"]  # fmt: skip


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_the_middle_of_an_epoch(run, packed, tmp_path, stopped_in):
    settings = [*_settings(packed), "data.batch_size=16"]
    run("whole", *settings)
    with stopped_in(1, 2):
        run("stopped", *settings)
    run("stopped", f"resume={tmp_path / 'stopped'}")
    assert different(last_weights(tmp_path / "whole"), last_weights(tmp_path / "stopped")) == []


@pytest.mark.slow
def test_two_processes_that_are_killed_end_as_they_would(packed, tmp_path):
    ranks = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    small = [one for one in SMALL if "limit_train" not in one and "batch_size" not in one]
    own = [*small, *_settings(packed), "data.batch_size=4", "trainer.max_epochs=3"]

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(TRAIN), *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(process: subprocess.Popen[str]) -> None:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(*ranks, *own, f"paths.output_dir={whole}"))
    process = start(*ranks, *own, f"paths.output_dir={killed}")
    while not (killed / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # both processes and their workers
    process.communicate()
    finish(start(f"resume={killed}"))
    assert different(last_weights(whole), last_weights(killed)) == []
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (whole, killed)]
    assert len(rows[0]) == len(rows[1]) == 4
    np.testing.assert_array_equal(*[_losses(text) for text in rows])


def _losses(rows: list[str]) -> list[float]:
    column = rows[0].split(",").index("train/loss")
    return [float(row.split(",")[column]) for row in rows[1:]]
