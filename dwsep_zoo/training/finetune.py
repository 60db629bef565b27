"""Fine-tuning: freezing parts of a network, at first or for the whole training."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.optim import Optimizer

from dwsep_zoo.errors import UserError
from dwsep_zoo.nn.init import CLASSIFIER
from dwsep_zoo.schema.settings import Recipe
from dwsep_zoo.training.optim import part_of

log = logging.getLogger("dwsep_zoo")


class FineTune(Callback):
    """Keeps frozen parameters, and the running statistics of their modules, bit for bit.

    A module whose parameters are all frozen is in evaluation mode with everything in it. The epoch
    alone decides, and nothing is saved, so a run resumes in any phase.

    Args:
        freeze: patterns frozen for the whole run, see :func:`frozen_names`.
        freeze_epochs: number of first epochs that train the classifier alone.
    """

    def __init__(self, freeze: Sequence[str], freeze_epochs: int):
        self.freeze = freeze
        self.freeze_epochs = freeze_epochs
        self.trained: set[nn.Parameter] = set()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":  # before the optimizer and DDP look at the parameters
            model = _network(pl_module)
            frozen = frozen_names(model, self.freeze)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in frozen)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        groups = trainer.optimizers[0].param_groups
        peaks = {group["part"]: group["initial_lr"] for group in groups if "part" in group}
        if peaks:
            log.info("learning rates: %s", ", ".join(f"{k} {v:.3g}" for k, v in peaks.items()))
        self._begin_phase(trainer, _network(pl_module))  # perhaps in the middle of an epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_phase(trainer, _network(pl_module))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        for group in trainer.optimizers[0].param_groups:
            if "part" in group:
                rate = 0.0 if self.trained.isdisjoint(group["params"]) else group["lr"]
                pl_module.log(f"lr/{group['part']}", torch.full((), rate, device=pl_module.device))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        for group in optimizer.param_groups:
            for parameter in set(group["params"]) - self.trained:
                parameter.grad = None  # so neither it nor its momentum changes

    def _begin_phase(self, trainer: L.Trainer, model: nn.Module) -> None:
        head_only = trainer.current_epoch < self.freeze_epochs
        frozen = frozen_names(model, self.freeze)
        if head_only:
            frozen |= {name for name, _ in model.named_parameters() if part_of(name) != CLASSIFIER}
        trained = {p for name, p in model.named_parameters() if name not in frozen}
        if isinstance(trainer.strategy, SingleDeviceStrategy):
            # No backward pass through frozen parts. DDP waits for all gradients it counted at the
            # start, so there they are computed, and dropped before the step.
            for parameter in model.parameters():
                parameter.requires_grad_(parameter in trained)
        model.train()
        for module in model.modules():
            own = set(module.parameters())
            if own and own.isdisjoint(trained):
                module.eval()
        if trained != self.trained:
            self.trained = trained
            log.info(
                "from epoch %d: training %s of %s parameters%s",
                trainer.current_epoch + 1,
                f"{sum(p.numel() for p in trained):,}",
                f"{sum(p.numel() for p in model.parameters()):,}",
                ", the classifier" if head_only else "",
            )


def frozen_names(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """The parameters that the patterns name.

    Args:
        model: a network.
        patterns: shell patterns of parameters or of modules around them: ``stem``, ``stages.0*``.

    Raises:
        UserError: for a pattern that names nothing, with the nearest module.
    """
    # of stem.0.conv.weight: stem, stem.0, stem.0.conv, stem.0.conv.weight
    around = {
        name: list(accumulate(name.split("."), "{}.{}".format))
        for name, _ in model.named_parameters()
    }
    frozen: set[str] = set()
    for pattern in map(str, patterns):
        found = {n for n, path in around.items() if any(fnmatchcase(m, pattern) for m in path)}
        if not found:
            names = dict.fromkeys(module for path in around.values() for module in path)
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0)[0]
            parts = dict.fromkeys(map(part_of, around))
            raise UserError(
                f"recipe.freeze: the network has no {pattern!r}; did you mean {near!r}? "
                f"parts: {', '.join(parts)}"
            )
        frozen |= found
    return frozen


def check_freeze(model: nn.Module, recipe: Recipe) -> None:
    """Raises UserError if the recipe freezes parts that the network lacks, or leaves nothing."""
    trained = {name for name, _ in model.named_parameters()}
    trained -= frozen_names(model, recipe.freeze or ())
    if not trained:
        raise UserError(f"recipe.freeze={list(recipe.freeze or ())} leaves nothing to train")
    if recipe.freeze_epochs and not any(part_of(name) == CLASSIFIER for name in trained):
        raise UserError(
            f"recipe.freeze={list(recipe.freeze or ())} leaves nothing to train in the first "
            f"{recipe.freeze_epochs} epochs, which train the classifier; set "
            "recipe.freeze_epochs=null"
        )


def _network(pl_module: L.LightningModule) -> nn.Module:
    return pl_module.get_submodule("model")
