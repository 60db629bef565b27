"""A run that was stopped ends where an uninterrupted one ends, bit for bit."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import SMALL, different, last_weights
from PIL import Image

from dwsep_zoo import UserError
from dwsep_zoo.commands.train import run_train
from dwsep_zoo.schema.data_settings import AugmentSettings
from dwsep_zoo.schema.record import read_record, update_record
from dwsep_zoo.training import check, continued, resume_settings
from dwsep_zoo.training.checkpoints import load_checkpoint
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.trainer import OneFile

PRECISE = "recipe.norm_statistics=precise"
VARIED = (
    *("recipe.mixup=0.3", "recipe.cutmix=1.0", "data.augment.auto_augment=trivial"),
    *("data.augment.color_jitter=0.3", "data.augment.erase=0.5"),
)
AUGMENT = AugmentSettings.model_fields
TRAIN = Path(__file__).parents[2] / "train.py"
INTERRUPTED = Path(__file__).parents[1] / "runs" / "interrupted"


def epochs(folder):
    with (folder / "metrics.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


@pytest.fixture
def stopped(run, tmp_path, stopped_in):
    """The folder of a run that was stopped in the second of its two epochs."""
    with stopped_in(1, 1):
        run("stopped", "tags=[a]")
    return tmp_path / "stopped"


@pytest.fixture
def old(tmp_path):
    """A copy of a run of an earlier version, stopped in the third of its four epochs."""
    return shutil.copytree(INTERRUPTED, tmp_path / "run")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "change",
    [
        *("recipe.lr=0.2", "seed=1", "model.width_mult=0.25", "conv.mid=norm_act", "match=macs"),
        *("data.batch_size=32", "data.split_seed=1", "trainer.precision=bf16-mixed", "train=false"),
        *("trainer.limit_train_batches=2", "recipe.model_ema_decay=0.9", "model=mobilenet_v2"),
        *("recipe.lrr=3", "trainer.max_epochs=0", "callbacks.early_stopping=x", "experiment=x"),
        *("profile=null", "hparams_search=optuna", "seed.x=1", "lr=1", "recipe=adamw"),
    ],
)
def test_changes_that_would_make_another_run_are_refused(run, old, change):
    before = contents(old)
    with pytest.raises(UserError) as error:
        run("run", f"resume={old}", change)
    assert change.partition("=")[0].split(".")[-1] in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(old) == before


def test_a_cache_may_be_verified_but_neither_begun_nor_left(old, tmp_path):
    """Pictures from files and from a cache are augmented otherwise."""
    data = {"name": "folder", "root": str(tmp_path)}
    config = resume_settings(old).plain()
    for before, now, fine in ((True, "verify", True), (False, True, False), (True, False, False)):
        cached = {**config["data"], **data, "cache": before, "augment": dict.fromkeys(AUGMENT)}
        update_record(old / "result.json", config={**config, "data": cached})
        settings = resume_settings(old, {"data.cache": now})
        if fine:
            assert check(settings).start
        else:
            with pytest.raises(UserError, match=r"cannot change data\.cache from"):
                check(settings)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("max_epochs", "did you mean trainer.max_epochs="),
        ("recipe.lrr", "unknown key of recipe 'lrr'; did you mean 'lr'"),
        ("data.augment.flop", "unknown key of data.augment 'flop'; did you mean 'flip'"),
        ("seed.x", "seed has no parts"),
        ("sed", "unknown key 'sed'; did you mean 'seed'"),
    ],
)
def test_unknown_keys_name_the_nearest(key, hint):
    with pytest.raises(UserError, match=hint):
        resume_settings(INTERRUPTED, {key: 3})


def test_places_words_and_lengths_may_change(run, stopped):
    changes = {
        "trainer.max_epochs": 3,
        "tags": ["b"],
        "logger.tensorboard": False,
        "callbacks.save_every_n_epochs": 2,
        "profile.batch_sizes": [2],
        "test": False,
    }
    result = run("stopped", f"resume={stopped}", *(f"{k}={v}" for k, v in changes.items()))
    record = read_record(stopped / "result.json")
    assert {key: record.configured(key) for key in changes} == changes
    assert (result["status"], epochs(stopped)) == ("finished", [1, 2, 3])
    assert result["latency"][0]["batch_size"] == 2
    assert "test/acc" not in result["metrics"]


def test_a_folder_that_was_moved_goes_on_in_its_new_place(run, tmp_path, stopped):
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    stopped.rename(moved)
    assert run("moved", f"resume={moved}")["status"] == "finished"
    assert epochs(moved) == [1, 2]
    assert not stopped.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("{", "it is not JSON"),
        ("[]", "it does not hold a JSON object"),
        ('{"schema": 99}', "its schema is 99; this version reads up to"),
        ('{"model": "x", "conv": 3}', "conv must be text; got 3"),
        ('{"model": "mobilenet_v1", "conv": "standard"}', "is missing"),
        (b"\xff", "it is not JSON"),
        (None, "not the folder of a run"),
    ],
)
def test_damaged_records_are_named(run, old, damage, message):
    file = old / "result.json"
    file.unlink()
    if damage is not None:
        file.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    before = contents(old)
    with pytest.raises(UserError, match=message) as error:
        run("run", f"resume={old}")
    assert "\n" not in str(error.value)
    assert str(old) in str(error.value)
    assert contents(old) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [("cut", "damaged"), ("foreign", "not a checkpoint of"), ("", "no ch")],
)
def test_damaged_checkpoints_are_named(run, old, damage, message):
    last = old / "checkpoints" / "last.ckpt"
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:1000])
    elif damage == "foreign":
        torch.save({"state_dict": {}}, last)
    else:
        last.unlink()
    before = contents(old)
    with pytest.raises(UserError, match=message):
        run("run", f"resume={old}")
    assert contents(old) == before


def anew(folder, **changes):
    """The settings of a command line that names a run's folder and knows nothing of a resume."""
    settings = resume_settings(INTERRUPTED)
    paths = {**settings.paths.plain(), "output_dir": str(folder)}
    return settings.replace(resume=None, paths=paths, **changes)


def test_the_same_settings_begin_a_run_or_go_on_with_it(tmp_path, old):
    """``resume=auto``."""
    new = anew(tmp_path / "new")
    assert continued(new) == new
    assert continued(anew(old)) == anew(old).replace(resume=str(old))
    with pytest.raises(UserError, match="cannot change seed from 0 to 5"):
        continued(anew(old, seed=5))
    shutil.rmtree(old / "checkpoints")
    for status in ("interrupted", "running", "failed"):
        update_record(old / "result.json", status=status)
        assert continued(anew(old)) == anew(old)
        assert check(anew(old)).start is None
    update_record(old / "result.json", status="finished")
    assert continued(anew(old)) is None


def test_a_recipe_that_was_searched_for_is_no_change(tmp_path):
    run = shutil.copytree(INTERRUPTED.with_name("searched"), tmp_path / "run")
    record = read_record(run / "result.json")
    settings = resume_settings(run)
    paths = {**settings.paths.plain(), "output_dir": str(run)}
    recipe = {**settings.recipe.plain(), "lr": 0.1, "weight_decay": 0.0005}
    again = settings.replace(resume=None, paths=paths, recipe=recipe)
    assert continued(again) is None
    update_record(run / "result.json", status="interrupted")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    assert continued(again).recipe.lr == record.search.best["lr"]


@pytest.mark.parametrize(
    ("epoch", "batch", "extra"),
    [
        (0, 1, ("recipe.model_ema_decay=0.9", PRECISE)),
        (1, 3, ("recipe.optimizer=muon",)),  # the last batch of an epoch
        (1, 0, ("trainer.accumulate_grad_batches=3",)),  # inside a step
        (1, 0, ("trainer.accumulate_grad_batches=2", "recipe.initial_size=24", *VARIED)),
        (1, 2, ("data.sampler=balanced", "data.subset.classes=[1,2,3]")),
        pytest.param(2, 0, ("recipe=adamw", "trainer.limit_val_batches=0"), marks=pytest.mark.slow),
        # the classifier alone is trained in the first epoch
        pytest.param(
            *(0, 1, ("recipe=finetune", "recipe.model_ema_decay=0.9", PRECISE)),
            marks=pytest.mark.slow,
        ),
        (1, 1, ("recipe=finetune", "recipe.optimizer=sgd", "recipe.freeze=[stem]")),
    ],
)
def test_ctrl_c_saves_and_the_rest_is_the_same(run, tmp_path, stopped_in, epoch, batch, extra):
    extra = (*extra, "trainer.max_epochs=3", "model.drop_rate=0.5")
    run("whole", *extra)
    with stopped_in(epoch, batch):
        run("stopped", *extra)
    result = run("stopped", f"resume={tmp_path / 'stopped'}")
    assert result["status"] == "finished"
    assert epochs(tmp_path / "stopped") == [1, 2, 3]
    ends = last_weights(tmp_path / "whole"), last_weights(tmp_path / "stopped")
    assert different(*ends) == []


def test_kill_9_in_the_middle_of_an_epoch_then_resume_last(run, tmp_path, monkeypatch):
    """Killed as the user starts it; the others are runs of this process."""
    epochs_to_come = ("trainer.max_epochs=4", "trainer.accelerator=cpu")
    small = [setting for setting in SMALL if not setting.startswith("trainer.max_epochs")]
    run("whole", *epochs_to_come)
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), *small, *epochs_to_come],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (saved := list(tmp_path.glob("logs/train/runs/*/checkpoints/last.ckpt"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed = saved[0].parents[1]
    time.sleep(0.05)  # into the second epoch or a later one
    process.kill()
    process.wait()
    assert len(epochs(killed)) < 4

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    evaluated = tmp_path / "logs" / "eval" / "later"
    evaluated.mkdir(parents=True)
    shutil.copy(killed / "result.json", evaluated)  # as dwsep eval leaves one
    run_train(["resume=last"])
    assert len(list(tmp_path.glob("logs/train/runs/*"))) == 1  # it went on in the same folder
    assert epochs(killed) == [1, 2, 3, 4]
    assert different(last_weights(tmp_path / "whole"), last_weights(killed)) == []


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
    longer = ("trainer.max_epochs=3", f"ckpt_path={checkpoint}")
    run("second", *longer, "recipe.label_smoothing=0.1")
    assert epochs(tmp_path / "second") == [3]
    # Lightning would set these back to the checkpoint's.
    for change in ("lr=0.01", "weight_decay=0", "momentum=0.5", "optimizer=adamw"):
        with pytest.raises(UserError, match=f"recipe.{change.split('=')[0]} is .*model.pretrained"):
            run("third", *longer, f"recipe.{change}")
    assert not (tmp_path / "third").exists()


def test_checkpoints_and_runs_that_cannot_go_on(run, tmp_path):
    run("first")
    before = contents(tmp_path)
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    longer = ("trainer.max_epochs=3", f"ckpt_path={checkpoint}")
    for message, *overrides in (
        ("ckpt_path=nowhere.ckpt: there is no checkpoint", "ckpt_path=nowhere.ckpt"),
        ("has all of its 2 epochs behind it", f"ckpt_path={checkpoint}"),
        ("this run is finished; to train it further than its 2", f"resume={tmp_path / 'first'}"),
    ):
        with pytest.raises(UserError, match=message):
            run("run", *overrides)
        assert contents(tmp_path) == before
    with pytest.raises(UserError, match="name=mobilenet_v1_shallow, this run's has mobilenet_v2"):
        run("run", *longer, "model=mobilenet_v2")
    with pytest.raises(UserError, match=r"has width_mult=0.125, this run's has 0.25"):
        run("run", *longer, "model.width_mult=0.25")


def best_of(folder):
    return OneFile(folder, "best", 1, monitor="val/acc", mode="max")


def test_the_best_score_is_known_where_a_folder_has_been_moved(tmp_path):
    before, after = (best_of(tmp_path / name) for name in ("before", "after"))
    path, score = str(tmp_path / "before" / "best.ckpt"), torch.tensor(0.9)
    before.best_model_score, before.best_k_models = score, {path: score}
    before.best_model_path = before.kth_best_model_path = path
    before.kth_value = score
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "best.ckpt").touch()
    (tmp_path / "before").rename(tmp_path / "after")
    after.load_state_dict(before.state_dict())
    path = str(tmp_path / "after" / "best.ckpt")
    assert (after.best_model_path, after.best_k_models) == (path, {path: score})
    alone = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool))
    assert not after.check_monitor_top_k(alone, torch.tensor(0.8))
    assert after.check_monitor_top_k(alone, torch.tensor(0.95))


def test_between_saved_epochs_ctrl_c_is_answered_in_the_next_step(run, tmp_path, monkeypatch):
    """Asked for in the validation of the second epoch, of which nothing was saved."""
    validate = LitClassifier.on_validation_end
    asked = []

    def on_validation_end(self):
        validate(self)
        if self.current_epoch == 1 and not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    overrides = ("callbacks.save_every_n_epochs=3", "trainer.max_epochs=3")
    run("whole", *overrides)
    with monkeypatch.context() as patch:
        patch.setattr(LitClassifier, "on_validation_end", on_validation_end)
        with pytest.raises(SystemExit):
            run("stopped", *overrides)
    saved = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2 * 4 + 1
    run("stopped", f"resume={tmp_path / 'stopped'}")
    ends = last_weights(tmp_path / "whole"), last_weights(tmp_path / "stopped")
    assert different(*ends) == []


def test_ctrl_c_outside_of_the_training_is_recorded(run, tmp_path, monkeypatch):
    def test_step(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(LitClassifier, "test_step", test_step)
    try:
        with pytest.raises(SystemExit) as stop:
            run("run")
    finally:
        signal.signal(signal.SIGINT, handler)  # lightning ignores further ones
    assert stop.value.code == 130
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (record["status"], record["error"]) == ("interrupted", "stopped at once")
    assert "resume=" in (tmp_path / "run" / "train.log").read_text()


def test_a_run_without_a_teacher_goes_on_without_one(run, old):
    with pytest.raises(UserError, match="the run began without a teacher"):
        run("run", f"resume={old}", "distill.teacher=mobilenet_v1.cifar10")


def test_other_pictures_make_another_run(run, tmp_path, stopped_in):
    root, rng = tmp_path / "pictures", np.random.default_rng(0)
    for i in range(80):
        path = root / "ab"[i % 2] / f"{i // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    folder = ("data=folder", f"data.root={root}", "data.image_size=32", "data.batch_size=16")
    with stopped_in(1, 1):
        run("stopped", *folder, "trainer.limit_train_batches=3")
    before = contents(tmp_path / "stopped")
    one = root / "a" / "3.png"
    was = one.read_bytes()
    one.write_bytes((root / "b" / "3.png").read_bytes())
    with pytest.raises(UserError, match="its pictures have changed since it began") as error:
        run("stopped", f"resume={tmp_path / 'stopped'}")
    assert "\n" not in str(error.value)
    assert contents(tmp_path / "stopped") == before
    one.write_bytes(was)
    assert run("stopped", f"resume={tmp_path / 'stopped'}")["status"] == "finished"


def test_a_signal_in_the_last_validation_ends_the_run_before_its_test(run, tmp_path, monkeypatch):
    validate = LitClassifier.on_validation_end

    def on_validation_end(self):
        validate(self)
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(LitClassifier, "on_validation_end", on_validation_end)
        with pytest.raises(SystemExit) as end:
            run("stopped")
    assert end.value.code == 130
    record = read_record(tmp_path / "stopped" / "result.json")
    assert (record.status, record.metrics) == ("interrupted", {})
    result = run("stopped", f"resume={tmp_path / 'stopped'}")
    assert result["status"] == "finished"
    assert epochs(tmp_path / "stopped") == [1, 2]
    ends = last_weights(tmp_path / "whole"), last_weights(tmp_path / "stopped")
    assert different(*ends) == []


def test_a_damaged_checkpoint_is_kept_aside_when_the_training_goes_on(run, tmp_path, stopped):
    last = stopped / "checkpoints" / "last.ckpt"
    damaged = last.read_bytes()[:-1] + b"x"
    last.write_bytes(damaged)
    before = contents(stopped)
    with pytest.raises(UserError):
        run("stopped", f"resume={stopped}", "data.root=nowhere")
    assert contents(stopped) == before
    assert run("stopped", f"resume={stopped}")["status"] == "finished"
    assert last.with_name("last.ckpt.damaged").read_bytes() == damaged
    assert load_checkpoint(last.with_name("previous.ckpt"))


def test_a_run_that_had_stopped_early_trains_no_further(run, tmp_path, monkeypatch):
    extra = ("callbacks.early_stopping=1", "trainer.max_epochs=9", "recipe.lr=1e-9")
    with monkeypatch.context() as patch:
        patch.setattr("lightning.Trainer.test", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("run", *extra)
    trained = epochs(tmp_path / "run")
    assert len(trained) < 9
    result = run("run", f"resume={tmp_path / 'run'}")
    assert epochs(tmp_path / "run") == trained
    assert (result["status"], result["epochs"]) == ("finished", len(trained))
