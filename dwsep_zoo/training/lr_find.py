"""A learning-rate range test: a short training whose rate rises from step to step.

Smith, arXiv:1506.01186, section 3.3. Lightning's own gives all groups of parameters the same rate;
this one keeps the proportions of the recipe's groups, and runs the recipe's own step: optimizer,
precision, augmentation, loss, teacher, accumulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.settings import Settings
from dwsep_zoo.training.assemble import create_module
from dwsep_zoo.training.batch_size import with_batch_size
from dwsep_zoo.training.out_of_memory import naming_a_batch_size
from dwsep_zoo.training.prepare import prepare
from dwsep_zoo.training.trainer import create_trainer

DIVERGED = 4.0
"""The test ends when the smoothed loss is this many times its least."""
SMOOTHING = 0.9
FALL = 0.98
"""A loss has fallen if it is below this part of the first one, both smoothed."""


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    Attributes:
        rates: of the steps, as ``recipe.lr`` has them.
        losses: of the steps.
        smoothed: their average over about ten steps.
        batch_size: as ``data.batch_size``.
        images: of a step.
    """

    rates: Sequence[float]
    losses: Sequence[float]
    smoothed: Sequence[float]
    batch_size: int
    images: int

    @property
    def suggestion(self) -> float | None:
        """A tenth of the rate at which the smoothed loss is least; ``None`` if it never falls.

        At the least loss itself the next steps diverge. The first steps only make the average.
        """
        begin = len(self.smoothed) // 10
        least = min(range(begin, len(self.smoothed)), key=self.smoothed.__getitem__)
        fell = self.smoothed[least] < FALL * self.smoothed[begin]
        return float(f"{self.rates[least] / 10:.1e}") if fell else None


def find_lr(settings: Settings, *, lowest: float, highest: float, steps: int) -> RangeTest:
    """Train on the real data with the real network; nothing of it is kept.

    Args:
        settings: those of the run that needs a rate.
        lowest: of ``recipe.lr``, in the first step; the rate grows by the same factor each step.
        highest: in the last step.
        steps: of the optimizer.

    Raises:
        UserError: for data or a network that cannot be had.
    """
    recipe = settings.recipe.replace(  # what depends on epochs is as it is in most of them
        schedule="constant",
        warmup_fraction=0.0,
        freeze_epochs=None,
        initial_size=None,
        model_ema_decay=None,
        norm_statistics="running",
    )
    settings = settings.replace(
        train=True,
        recipe=recipe.plain(),
        trainer={
            **settings.trainer.plain(),
            **{"max_epochs": steps, "max_steps": steps, "limit_val_batches": 0, "compile": False},
            "enable_progress_bar": False,
        },
        callbacks={**settings.callbacks.plain(), "early_stopping": None},
    )
    L.seed_everything(settings.seed, workers=True, verbose=False)
    prepared = prepare(settings)
    settings = with_batch_size(settings, prepared)
    module = create_module(settings, prepared, prepared.model)
    rising = Rising(recipe.lr, lowest, highest, steps)
    folder = Path(settings.paths.output_dir)
    trainer = create_trainer(settings, folder, [rising], save=False)
    try:
        with naming_a_batch_size(prepared, trainer.strategy.root_device):
            trainer.fit(module, datamodule=prepared.data)
    except SystemExit as stop:  # Lightning's, of ctrl-C
        raise KeyboardInterrupt from stop
    if not rising.losses:
        raise UserError("the first step of the training made no finite loss")
    batch_size = prepared.data.batch_size
    images = batch_size * trainer.accumulate_grad_batches * trainer.world_size
    return RangeTest(rising.rates, rising.losses, rising.smoothed, batch_size, images)


class Rising(Callback):
    """Sets the rate of every step, keeps its loss, and stops when the loss has diverged.

    Args:
        lr: the recipe's, to which the rates of the groups are in proportion.
        lowest: rate of the first step.
        highest: rate of the last step.
        steps: their number.
    """

    def __init__(self, lr: float, lowest: float, highest: float, steps: int):
        self.lr, self.lowest, self.steps = lr, lowest, steps
        self.growth = (highest / lowest) ** (1 / max(1, steps - 1))
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.average = 0.0
        self.seen: list[float] = []  # losses of the batches of this step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        rate = self.lowest * self.growth**trainer.global_step
        for group in trainer.optimizers[0].param_groups:
            own = group["initial_lr"] * rate / self.lr
            if isinstance(group["lr"], float):
                group["lr"] = own
            else:
                group["lr"].fill_(own)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.seen.append(float(pl_module.loss))  # type: ignore[arg-type]
        if trainer.global_step == len(self.losses):  # in the middle of an accumulated step
            return
        loss, self.seen = sum(self.seen) / len(self.seen), []
        if not math.isfinite(loss):
            trainer.should_stop = True
            return
        self.rates.append(self.lowest * self.growth ** (trainer.global_step - 1))
        self.losses.append(loss)
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * loss
        self.smoothed.append(self.average / (1 - SMOOTHING ** len(self.losses)))
        if self.smoothed[-1] > DIVERGED * min(self.smoothed):
            trainer.should_stop = True
