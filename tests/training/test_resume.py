"""A run that was stopped ends where an uninterrupted one ends, bit for bit."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import different, last_weights

from dwsep_zoo import UserError

TRAIN = Path(__file__).parents[2] / "train.py"


def epochs(folder):
    with (folder / "metrics.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("epoch", "batch", "extra"),
    [
        (0, 1, ("recipe.model_ema_decay=0.9",)),
        (1, 3, ()),  # the last batch of an epoch
        (2, 0, ("recipe=adamw", "+trainer.limit_val_batches=0")),
        # the classifier alone is trained in the first epoch
        (0, 1, ("recipe=finetune",)),
        (0, 3, ("recipe=finetune", "recipe.model_ema_decay=0.9")),
        (1, 1, ("recipe=finetune", "recipe.optimizer=sgd", "recipe.freeze=[stem]")),
    ],
)
def test_ctrl_c_saves_and_the_rest_is_the_same(run, tmp_path, stopped_in, epoch, batch, extra):
    extra = (*extra, "trainer.max_epochs=3", "model=mobilenet_v2", "model.drop_rate=0.5")
    run("whole", *extra)
    with stopped_in(epoch, batch):
        run("stopped", *extra)
    result = run("stopped", *extra, f"resume={tmp_path / 'stopped'}")
    assert result["status"] == "finished"
    assert epochs(tmp_path / "stopped") == [1, 2, 3]
    ends = last_weights(tmp_path / "whole"), last_weights(tmp_path / "stopped")
    assert different(*ends) == []


def test_kill_9_in_the_middle_of_an_epoch_then_resume_last(tmp_path):
    def command(*overrides):
        return [
            *(sys.executable, str(TRAIN), "model=mobilenet_v1", "model.width_mult=0.25"),
            *("trainer.max_epochs=4", "trainer.accelerator=cpu", *overrides),
        ]

    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = tmp_path / "whole"
    subprocess.run(
        command(f"hydra.run.dir={whole}"), cwd=tmp_path, env=env, check=True, capture_output=True
    )
    process = subprocess.Popen(
        command(), cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tables := list(tmp_path.glob("logs/train/runs/*/metrics.csv"))) or not epochs(
        tables[0].parent
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed = tables[0].parent
    while not (killed / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)
    time.sleep(0.3)  # into the second epoch or a later one
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(epochs(killed)) < 4

    subprocess.run(
        [sys.executable, str(TRAIN), "resume=last"],
        cwd=tmp_path,
        env=env,
        check=True,
        capture_output=True,
    )
    assert len(list(tmp_path.glob("logs/train/runs/*"))) == 1  # it went on in the same folder
    assert epochs(killed) == [1, 2, 3, 4]
    assert different(last_weights(whole), last_weights(killed)) == []


def test_stopped_between_training_and_test(run, tmp_path, monkeypatch):
    """All epochs are behind it: only what was left is done."""
    with monkeypatch.context() as patch:
        patch.setattr("lightning.Trainer.test", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("run")
    trained = last_weights(tmp_path / "run")
    result = run("run", f"resume={tmp_path / 'run'}")
    assert result["status"] == "finished"
    assert "test/acc" in result["metrics"]
    assert epochs(tmp_path / "run") == [1, 2]
    assert different(trained, last_weights(tmp_path / "run")) == []


def test_ckpt_path_goes_on_in_a_new_folder(run, tmp_path):
    run("first", "trainer.max_epochs=2")
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    run("second", "trainer.max_epochs=3", f"ckpt_path={checkpoint}")
    assert epochs(tmp_path / "second") == [3]


def test_messages(run, tmp_path):
    with pytest.raises(UserError, match=r"ckpt_path=nowhere.ckpt: there is no checkpoint"):
        run("run", "ckpt_path=nowhere.ckpt")
    run("first")
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match="has all of its 2 epochs behind it"):
        run("run", f"ckpt_path={checkpoint}")
    before = (tmp_path / "first" / "result.json").read_text()
    with pytest.raises(UserError, match="this run is finished; to train it further than its 2"):
        run("first", f"resume={tmp_path / 'first'}")
    assert (tmp_path / "first" / "result.json").read_text() == before
    with pytest.raises(
        UserError, match="network has name=mobilenet_v1, this run's has mobilenet_v2"
    ):
        run("run", f"ckpt_path={checkpoint}", "model=mobilenet_v2", "trainer.max_epochs=3")
    with pytest.raises(UserError, match=r"network has width_mult=0.125, this run's has 0.25"):
        run("run", f"ckpt_path={checkpoint}", "model.width_mult=0.25", "trainer.max_epochs=3")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        run("run", f"ckpt_path={checkpoint}", "trainer.max_epochs=3")
