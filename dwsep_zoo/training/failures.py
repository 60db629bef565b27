"""Trainings that cannot go on, and what helps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from dwsep_zoo.analysis.memory import training_memory
from dwsep_zoo.errors import UserError

CHECK_EVERY = 50  # steps; asking a GPU for a number makes the CPU wait for it
Step = tuple[int, int, float]  # epoch, step in it, learning rate
USABLE = 0.8  # of a device's memory; the rest is its libraries' and lost between blocks


class StopOnNonFinite(Callback):
    """Stops when the loss is no number any more.

    Args:
        checkpoint: ``last.ckpt``, of the end of the last epoch whose loss was one.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.lr = 0.0
        self.losses: list[Tensor] = []
        self.steps: list[Step] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        loss = outputs["loss"]
        self.losses.append(loss)
        self.last = (trainer.current_epoch + 1, batch_idx + 1, self.lr)
        self.steps.append(self.last)
        if loss.device.type == "cpu" or len(self.losses) == CHECK_EVERY or trainer.is_last_batch:
            self._check()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the epoch is saved: a finite loss can have had gradients that were not."""
        if not all(torch.isfinite(parameter).all() for parameter in pl_module.parameters()):
            self._stop("the weights", "infinite or NaN", self.last)

    def _check(self) -> None:
        losses, steps = torch.stack(self.losses).tolist(), self.steps
        self.losses, self.steps = [], []
        for loss, step in zip(losses, steps, strict=True):
            if loss - loss != 0:  # infinite or not a number
                self._stop("train/loss", loss, step)

    def _stop(self, what: str, value: object, step: Step) -> NoReturn:
        epoch, number, lr = step
        good = ""
        if self.checkpoint.exists():
            good = f"; the last good state is {self.checkpoint}"
        raise UserError(
            f"{what} became {value} in step {number} of epoch {epoch}, at a learning rate of "
            f"{lr:.3g}; a smaller recipe.lr usually helps{good}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python could not get the memory that it asked for."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def out_of_memory(
    model: nn.Module, input_size: Sequence[int], batch_size: int, device: torch.device
) -> UserError:
    """Name the batch size that would fit, estimated from what a training step keeps.

    Args:
        model: of the run.
        input_size: ``(C, H, W)`` of an image.
        batch_size: that did not fit.
        device: where it was trained.
    """

    def need(images: int) -> int:
        return training_memory(model, input_size, batch_size=images)

    # In small batches the gradients of the weights make the peak, in large ones the activations.
    half = max(2, batch_size // 2)
    each = (need(2 * half) - need(half)) / half
    fits = half + int((USABLE * _memory(device) - need(half)) / each)
    fits = min(max(1, fits), batch_size // 2)  # the whole was too much, whatever the estimate says
    if not fits:
        return UserError(
            f"out of memory with data.batch_size=1 on this {device.type}: smaller images "
            "(data.image_size) or a narrower network (model.width_mult) are needed"
        )
    return UserError(
        f"out of memory with data.batch_size={batch_size}; about {fits} would fit on this "
        f"{device.type}, and trainer.accumulate_grad_batches={-(-batch_size // fits)} makes "
        "steps of as many images of it"
    )


def _memory(device: torch.device) -> int:
    """Bytes that a device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
