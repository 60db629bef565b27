"""The range test: rates of all groups, a sensible suggestion, and nothing left behind."""

from __future__ import annotations

import math
import re
import shlex
from types import SimpleNamespace

import pytest
import torch
from helpers import SMALL, composed, recipe
from torch import nn

from dwsep_zoo.cli import main
from dwsep_zoo.training.batch_size import SIZES
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.lr_find import RangeTest, Rising, find_lr
from dwsep_zoo.training.optim import create_optimizer


def descent(lowest: float, highest: float, curvature: float) -> RangeTest:
    """Gradient descent on ``curvature * x ** 2 / 2``, which diverges above ``2 / curvature``."""
    own, steps = recipe(lr=0.5, momentum=0.0), 200
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = create_optimizer(own, [{"params": [weight]}])
    optimizer.param_groups[0]["initial_lr"] = optimizer.param_groups[0]["lr"]
    rising = Rising(own.lr, lowest, highest, steps)
    trainer = SimpleNamespace(optimizers=[optimizer], global_step=0, should_stop=False)
    while trainer.global_step < steps and not trainer.should_stop:
        rising.on_train_batch_start(trainer, None, None, 0)
        optimizer.zero_grad()
        loss = curvature * weight.square().sum() / 2 + 1  # never 0, as of real data
        loss.backward()
        optimizer.step()
        trainer.global_step += 1
        module = SimpleNamespace(loss=loss.detach())
        rising.on_train_batch_end(trainer, module, None, None, 0)
    return RangeTest(rising.rates, rising.losses, rising.smoothed, 1, 1)


@pytest.mark.parametrize("curvature", [0.1, 1.0, 30.0])
def test_the_suggestion_is_below_the_rate_that_diverges(curvature):
    found = descent(1e-4, 1e3, curvature)
    assert found.rates == pytest.approx(
        [1e-4 * 1e7 ** (step / 199) for step in range(len(found.rates))]
    )
    assert len(found.losses) < 200  # it stops when the loss has diverged
    assert found.suggestion is not None
    assert 0.02 / curvature < found.suggestion < 2 / curvature


def test_a_loss_that_never_falls_has_no_suggestion():
    assert descent(10.0, 1e3, 1.0).suggestion is None
    assert descent(1e-9, 1e-8, 1.0).suggestion is None


def test_groups_keep_their_proportions_and_a_step_its_accumulated_batches():
    """Rates that are tensors, as in CUDA graphs, stay the same tensors."""
    tensor = torch.tensor(1.0)
    groups = [{"lr": 0.5, "initial_lr": 0.5}, {"lr": tensor, "initial_lr": 0.05}]
    optimizer = SimpleNamespace(param_groups=groups)
    trainer = SimpleNamespace(optimizers=[optimizer], global_step=0, should_stop=False)
    rising = Rising(0.5, 0.01, 0.04, 3)
    for batch, (step, loss) in enumerate([(0, 1.0), (1, 3.0), (1, 5.0), (2, 6.0)]):
        rising.on_train_batch_start(trainer, None, None, batch)
        trainer.global_step = step
        module = SimpleNamespace(loss=torch.tensor(loss))
        rising.on_train_batch_end(trainer, module, None, None, batch)
    assert rising.losses == [2.0, 5.5]
    assert rising.rates == pytest.approx([0.01, 0.02])
    assert groups[0]["lr"] == pytest.approx(0.02)
    assert groups[1]["lr"] is tensor
    assert tensor == pytest.approx(0.002)
    trainer.global_step = 3
    rising.on_train_batch_end(trainer, SimpleNamespace(loss=torch.tensor(math.nan)), None, None, 4)
    assert trainer.should_stop
    assert len(rising.losses) == 2


def test_the_command_ends_with_a_line_to_copy_and_leaves_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    chosen = [o for o in SMALL if not o.startswith(("trainer.limit", "logger", "profile"))]
    chosen += ["recipe.optimizer=muon", "recipe.muon_lr=0.2", "recipe.freeze=[stem, stages.0]"]
    main(["lr-find", *chosen, "recipe.lr=0.5", "steps=80"])
    lines = capsys.readouterr().out.splitlines()
    assert [path.name for path in tmp_path.iterdir()] == ["lr_find.png"]
    program, command, *overrides = shlex.split(lines[-1])
    assert (program, command) == ("dwsep", "train")
    suggested = composed(*overrides).recipe
    assert 1e-4 < suggested.lr < 1
    assert suggested.muon_lr == pytest.approx(suggested.lr * 0.2 / 0.5, rel=0.06)
    assert suggested.replace(lr=0.1, muon_lr=0.2) == composed(*chosen).recipe


def test_the_loss_is_that_of_the_training(run, tmp_path):
    """Class weights, mixing and a teacher are part of it."""
    run("teacher", "conv=standard", "trainer.max_epochs=1")
    parts = ("recipe.class_weights=balanced", "recipe.mixup=0.5", "recipe.cutmix=0.5",
             f"distill.teacher={tmp_path / 'teacher'}")  # fmt: skip
    first = run("run", *parts, "trainer.max_epochs=1", "trainer.limit_train_batches=1")

    def tested(*overrides: str) -> float:
        return find_lr(composed(*SMALL, *overrides), lowest=0.01, highest=0.1, steps=2).losses[0]

    assert tested(*parts) == pytest.approx(first["metrics"]["train/loss"], rel=1e-5)
    assert tested(*parts[:-1]) != pytest.approx(first["metrics"]["train/loss"], rel=1e-3)


def test_a_batch_size_is_chosen_as_for_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    chosen = [o for o in SMALL if not o.startswith(("trainer.limit", "logger", "profile"))]
    main(["lr-find", *chosen, "recipe.lr=0.5", "data.batch_size=auto", "steps=40", "lowest=1e-3"])
    *_, said, line = capsys.readouterr().out.splitlines()
    (number,) = re.findall(r"data\.batch_size=(\S+)", line)
    assert int(number) in SIZES
    assert f"for {number} images a step" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lowest=3 highest=1", "lowest=3 must be below highest=1"),
        ("recipe.optimizer=sdg", "did you mean 'sgd'"),
        ("trainer=ddp", "lr-find trains in one process"),
        ("data=folder", "data.root"),
        ("resume=last", "tests the first steps of a new run; leave resume=last out"),
    ],
)
def test_a_wrong_line_is_refused(line, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["lr-find", *line.split()])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in error
    assert error.count("\n") == 1


def test_out_of_memory_and_ctrl_c(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    chosen = [o for o in SMALL if not o.startswith(("trainer.limit", "logger", "profile"))]
    for error, code, said in (
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "would fit"),
        (KeyboardInterrupt(), 130, "stopped"),
    ):

        def training_step(self, batch, batch_idx, error=error):
            raise error

        monkeypatch.setattr(LitClassifier, "training_step", training_step)
        with pytest.raises(SystemExit) as stop:
            main(["lr-find", *chosen, "steps=10"])
        assert stop.value.code == code
        lines = capsys.readouterr().err.splitlines()
        assert said in lines[-1]
        assert "Traceback" not in "".join(lines)
