"""Trainings that cannot go on say what helps."""

import re

import pytest
import torch
from torch.nn import functional as F

from dwsep_zoo import UserError, create_model
from dwsep_zoo.analysis.memory import training_memory
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.out_of_memory import (
    USABLE,
    is_out_of_memory,
    out_of_memory,
    smaller_batch,
)

SIZE = (3, 32, 32)


def failing_in(monkeypatch, epoch, step, outcome):
    own = LitClassifier.training_step

    def training_step(self, batch, batch_idx):
        loss = own(self, batch, batch_idx)
        if (self.current_epoch, batch_idx) == (epoch, step):
            return outcome(loss)
        return loss

    monkeypatch.setattr(LitClassifier, "training_step", training_step)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_step_rate_and_last_good_state(
    run, tmp_path, monkeypatch, bad
):
    failing_in(monkeypatch, 1, 2, lambda loss: loss * bad)
    with pytest.raises(UserError) as error:
        run("run", "trainer.max_epochs=3", "recipe.schedule=constant", "recipe.warmup_fraction=0")
    message = str(error.value)
    assert f"became {bad} in step 3 of epoch 2, at a learning rate of 0.1" in message
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert message.endswith(str(last))
    saved = torch.load(last, weights_only=True)
    assert saved["epoch"] == 0
    assert all(torch.isfinite(t).all() for t in saved["state_dict"].values())


def test_in_the_first_epoch_there_is_no_good_state(run, monkeypatch):
    failing_in(monkeypatch, 0, 1, lambda loss: loss * float("nan"))
    with pytest.raises(UserError, match=r"step 2 of epoch 1.*usually helps$"):
        run("run")


def test_weights_that_are_no_numbers_are_not_saved(run, tmp_path, monkeypatch):
    """The loss of the last step is finite, its gradients are not."""

    def spoil(loss):
        spoiled = loss * 1.0
        spoiled.register_hook(lambda gradient: gradient * float("nan"))
        return spoiled

    failing_in(monkeypatch, 1, 3, spoil)
    with pytest.raises(UserError, match="the weights became infinite or NaN in step 4 of epoch 2"):
        run("run")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 0


def test_out_of_memory_names_a_batch_size(run, tmp_path, monkeypatch):
    def fail(loss):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    failing_in(monkeypatch, 0, 1, fail)
    with pytest.raises(
        UserError,
        match=r"data.batch_size=32; about 16 would fit.*data.batch_size=16 .*batches=2 .*32 images",
    ):
        run("run")


@pytest.mark.parametrize("fits", [128, 300])
def test_the_batch_size_that_fits_does(monkeypatch, fits):
    model = create_model("mobilenet_v1_shallow", width_mult=0.25, num_classes=10)
    budget = training_memory(model, SIZE, batch_size=fits)
    monkeypatch.setattr(
        "dwsep_zoo.training.out_of_memory.memory_of", lambda device: budget / USABLE
    )
    error = out_of_memory(model, SIZE, 1000, torch.device("cpu"))
    (named,) = map(int, re.findall("about ([0-9]+) would fit", str(error)))
    assert named == pytest.approx(fits, abs=2)


@pytest.mark.parametrize("batch_size", [2, 100, 127, 128, 1000])
def test_smaller_batches_make_nearly_the_same_steps(batch_size):
    for fits in range(1, batch_size // 2 + 1):
        size = smaller_batch(batch_size, fits)
        steps = -(-batch_size // size)
        assert fits / 2 <= size <= fits
        assert batch_size <= steps * size <= batch_size + steps
    assert smaller_batch(128, 48) == 32


@pytest.mark.parametrize(("batch_size", "said"), [(1, "smaller images"), (2, "about 1 would fit")])
def test_the_smallest_batches(batch_size, said):
    model = create_model("mobilenet_v1_shallow", width_mult=0.125, num_classes=10)
    assert said in str(out_of_memory(model, SIZE, batch_size, torch.device("cpu")))


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60)
    assert is_out_of_memory(error.value)
    with pytest.raises(RuntimeError) as other:
        F.conv2d(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3))
    assert not is_out_of_memory(other.value)
