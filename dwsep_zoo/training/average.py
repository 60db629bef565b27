"""The exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import AveragedModel


class Average(WeightAveraging):
    """Averages weights and running statistics in every step of the optimizer.

    Lightning's own asks the device in every step whether it is the first one, for which the CPU
    has to wait, and averages one tensor after the other. This one is part of the optimizer's step,
    so that a CUDA graph can contain it. Counts of batches are taken over, not averaged.

    Args:
        decay: weight of the average so far; the new weights have ``1 - decay``.
        warmup: after n steps use ``(1 + n) / (10 + n)`` while that is less than ``decay``, as
            TensorFlow's ``ExponentialMovingAverage`` does with ``num_updates``. With 0.9999 the
            first, random weights would else still be a third of the average after 10,000 steps.
    """

    def __init__(self, decay: float, *, warmup: bool = False):
        super().__init__()
        self.decay = decay
        self.warmup = warmup

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        average = self._average_model
        assert isinstance(average, AveragedModel)
        self.begun = bool(average.n_averaged)
        pairs = [
            (mine.detach(), theirs.detach())
            for mine, theirs in zip(_tensors(average.module), _tensors(pl_module), strict=True)
        ]
        others = [pair for pair in pairs if not pair[0].is_floating_point()]
        averaged = [mine for mine, _ in pairs if mine.is_floating_point()]
        current = [theirs for _, theirs in pairs if theirs.is_floating_point()]

        @torch.no_grad()
        def follow(*_: object) -> None:
            for mine, theirs in others if self.begun else pairs:
                mine.copy_(theirs)
            if self.begun and self.warmup:
                # A tensor, as a CUDA graph repeats the numbers it has seen.
                done = average.n_averaged.to(averaged[0])
                new = (9 / (10 + done)).clamp(min=1 - self.decay)
                torch._foreach_lerp_(averaged, current, [new] * len(averaged))
            elif self.begun:
                torch._foreach_lerp_(averaged, current, 1 - self.decay)
            self.begun = True
            average.n_averaged += 1

        optimizer.register_step_post_hook(follow)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._latest_update_step = trainer.global_step


def kept(decay: float, steps: int, *, warmup: bool) -> float:
    """How much of the average a step keeps, after so many that are in it."""
    return min(decay, (1 + steps) / (10 + steps)) if warmup else decay


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
