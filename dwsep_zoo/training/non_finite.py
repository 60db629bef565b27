"""Stopping a training that has diverged."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dwsep_zoo.errors import UserError

CHECK_EVERY = 50  # steps; reading a number from a GPU makes the CPU wait for it
Moment = tuple[int, int, float]
"""Epoch, step in it, learning rate."""


class StopOnNonFinite(Callback):
    """Stops when the loss or a weight becomes NaN or infinite.

    Args:
        checkpoint: ``last.ckpt``, saved at the end of the last good epoch.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.lr = 0.0
        self.losses: list[Tensor] = []
        self.steps: list[Moment] = []

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
        """Check the weights before they are saved: a finite loss can have infinite gradients."""
        if not all(torch.isfinite(parameter).all() for parameter in pl_module.parameters()):
            self._stop("the weights", "infinite or NaN", self.last)

    def _check(self) -> None:
        losses, steps = torch.stack(self.losses).tolist(), self.steps
        self.losses, self.steps = [], []
        for loss, step in zip(losses, steps, strict=True):
            if loss - loss != 0:  # infinite or not a number
                self._stop("train/loss", loss, step)

    def _stop(self, what: str, value: object, step: Moment) -> NoReturn:
        epoch, number, lr = step
        good = ""
        if self.checkpoint.exists():
            good = "; a new run goes on from the last good state with model.pretrained="
            good += str(self.checkpoint)
        raise UserError(
            f"{what} became {value} in step {number} of epoch {epoch}, at a learning rate of "
            f"{lr:.3g}; a smaller recipe.lr usually helps{good}"
        )
