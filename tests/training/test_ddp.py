"""Two processes on the CPU: one set of logs, and every image counted once."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_helpers import in_process, load_data
from lightning.fabric.plugins.environments import SLURMEnvironment

from dwsep_zoo import UserError, create_model
from dwsep_zoo.config import compose_settings
from dwsep_zoo.training import check
from dwsep_zoo.training.ddp import DataParallel, is_first_process, is_one_of_several
from dwsep_zoo.training.norm_statistics import (
    IN_TEST,
    IN_VALIDATION,
    batch_moments,
    set_statistics,
)
from dwsep_zoo.training.trainer import create_trainer

TRAIN = Path(__file__).parents[2] / "train.py"


# 129 validation images in batches of 64: one process has one batch, the other has two
DATA = {"val_fraction": 0.0717, "image_size": 16}
SETTINGS = [
    *("model=mobilenet_v3_small", "model.width_mult=0.25"),
    *("profile.patience=0", "profile.roofline=false", "logger.pictures=false"),
    *(f"data.{key}={value}" for key, value in DATA.items()),
    # Random numbers are each process's own. At higher rates what was rounded grows tenfold a step.
    *("data.augment.crop_padding=0", "model.drop_rate=0", "recipe.lr=3e-6"),
    *("trainer.precision=32-true", "trainer.limit_train_batches=5"),
]
COMMAND = [
    *(sys.executable, str(TRAIN), "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"),
    *(*SETTINGS, "data.batch_size=64"),
]


def columns(run, *names):
    with (run / "metrics.csv").open() as file:
        return [[float(row[name]) for name in names] for row in csv.DictReader(file)]


def test_two_processes(tmp_path, run):
    done = subprocess.run(
        [*COMMAND, "trainer.max_epochs=2"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.glob("logs/train/runs/*")
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    assert columns(folder, "epoch") == [[1], [2]]
    assert done.stdout.count("epoch   1/2") == 1
    assert (folder / "train.log").read_text().count("epoch   1/2") == 1
    # 10 steps of one process with the batches of both together
    run("alone", *SETTINGS, "data.batch_size=128", "trainer.max_epochs=2", "test=false")
    losses = [columns(path, "train/loss") for path in (folder, tmp_path / "alone")]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    # norms of the last checkpoint and the tested one: the pictures of both processes together
    for name, count in (("last", IN_VALIDATION), ("best", IN_TEST)):
        weights = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
        weights = {k[6:]: value for k, value in weights.items() if k.startswith("model.")}
        model = create_model(**result["network"]).eval()
        model.load_state_dict(weights)
        norms = {k: m for k, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
        moments = []
        for rank in range(2):
            share = in_process(load_data(batch_size=64, **DATA), rank, 2)
            loader = share.statistics_dataloader(count)
            images = [share.prepare_batch(batch)[0] for batch in loader]
            with torch.no_grad():
                moments += batch_moments(model, norms, images)
        set_statistics(norms, torch.stack(moments))
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, weights[key], rtol=1e-4, atol=1e-5, msg=key)
    # the images in order, as one process would have them
    predictions = np.load(folder / "predictions.npz")
    data = load_data(**DATA)
    assert predictions["label"].tolist() == data.splits["test"].labels.tolist()
    assert predictions["name"].tolist() == data.splits["test"].names
    assert predictions["probability"].sum(1) == pytest.approx(1, abs=5e-3)
    right = (predictions["label"] == predictions["predicted"]).mean()
    assert right == pytest.approx(result["metrics"]["test/acc"], abs=1e-6)
    # the accuracy is a whole number of images
    for split in ("val", "test"):
        images = result["data"]["splits"][split] * result["metrics"][f"{split}/acc"]
        assert abs(images - round(images)) < 1e-3


VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "WORLD_SIZE")


@pytest.mark.parametrize(
    ("variables", "first", "several"),
    [
        ({}, True, False),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True, True),  # torchrun
        ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, False, True),
        ({"RANK": "0", "NODE_RANK": "1"}, True, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False, True),  # Lightning
        ({"NODE_RANK": "1"}, False, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, True, True),  # srun
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "0"}, False, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, True, False),  # a batch script
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False, True),  # Lightning in a batch script
    ],
)
def test_which_process_writes(monkeypatch, variables, first, several):
    for name in (*VARIABLES, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first
    assert is_one_of_several() == several
    if several:
        with pytest.raises(UserError, match="need trainer=ddp"):
            check(compose_settings(["paths.output_dir=unused"]))


def test_a_job_of_slurm_is_requeued_by_its_script(tmp_path, monkeypatch):
    """Lightning's handler of SIGUSR1 would save elsewhere; where there is srun, it says nothing."""
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    settings = compose_settings(["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"])
    create_trainer(settings, tmp_path, [], save=False)
    for name in ("NTASKS", "NTASKS_PER_NODE", "STEP_NUM_TASKS"):
        monkeypatch.setenv(f"SLURM_{name}", "2")
    for name, value in {"JOB_NAME": "job", "NODEID": "0", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    trainer = create_trainer(settings, tmp_path, [], save=False)
    environment = trainer.strategy.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue


@pytest.mark.parametrize(
    ("code", "said"),
    [("os.kill(os.getpid(), 9)", "was killed by SIGKILL"), ("sys.exit(3)", "ended with code 3")],
)
def test_the_process_that_made_the_others_fail_is_named(tmp_path, code, said):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    strategy = DataParallel(tmp_path)
    waiting, ended = (
        subprocess.Popen([sys.executable, "-c", f"import os, sys; {text}"], stdin=subprocess.PIPE)
        for text in ("input()", code)
    )
    strategy._launcher = SimpleNamespace(procs=[waiting, ended])
    with pytest.raises(UserError, match=f"rank 2 {said}.* resume={tmp_path}$") as error:
        strategy.on_exception(RuntimeError("Connection closed by peer\n\n"))
    assert "\n" not in str(error.value)
    for process in (waiting, ended):
        process.communicate()
    assert waiting.returncode == -9
    assert strategy.launcher.procs == []


def test_errors_of_the_process_itself_stay_what_they_are():
    strategy = DataParallel(Path("logs/run"))
    strategy.on_exception(UserError("train/loss became nan"))
    strategy._launcher = SimpleNamespace(procs=[SimpleNamespace(poll=lambda: 0)])
    strategy.on_exception(UserError("train/loss became nan"))


@pytest.mark.slow
def test_a_killed_process_is_one_line(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "trainer.max_epochs=500"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (saved := list(tmp_path.glob("logs/train/runs/*/checkpoints/last.ckpt"))):
        assert process.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (other,) = [
        int(pid) for pid in children if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes()
    ]
    os.kill(other, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    folder = saved[0].parents[1]
    line = (
        "the process of rank 1 was killed by SIGKILL; go on from the last checkpoint with "
        f"resume={folder}"
    )
    assert said.splitlines()[-1] == f"error: {line}"
    record = json.loads((folder / "result.json").read_text())
    assert (record["status"], record["error"]) == ("failed", line)
