"""Keeping what the network makes of each test image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor

from dwsep_zoo.files import atomic_write
from dwsep_zoo.report.predictions import MOST_CLASSES, TOP, Predictions


def predicted(logits: Tensor) -> dict[str, Tensor]:
    """The class of each image and the probabilities that are kept, from ``(N, C)`` logits."""
    probability = logits.float().softmax(1)
    found = {"predicted": logits.argmax(1)}
    if logits.shape[1] > MOST_CLASSES:
        probability, found["top"] = probability.topk(TOP)
    return {**found, "probability": probability.half()}


class KeepPredictions(Callback):
    """Writes ``predictions.npz``, in the order of the test set.

    A test step returns ``label`` and what :func:`predicted` finds, for its batch.

    Attributes:
        kept: those of the last test, in the first process.
    """

    kept: Predictions | None = None

    def __init__(self, path: Path):
        self.path = path
        self.batches: list[dict[str, Tensor]] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.batches, self.kept = [], None

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.batches.append(outputs)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        own = {
            key: torch.cat([batch[key] for batch in self.batches]).cpu().numpy()
            for key in self.batches[0]
        }
        shares = [own]
        if trainer.world_size > 1:
            shares *= trainer.world_size
            torch.distributed.all_gather_object(shares, own)
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        arrays = {key: _in_order([share[key] for share in shares]) for key in own}
        names = np.array(data.splits["test"].names[: len(arrays["label"])], dtype=np.str_)
        self.kept = Predictions(**arrays, class_names=tuple(data.class_names), name=names)
        atomic_write(self.path, self.kept.npz())


def _in_order(shares: list[NDArray[Any]]) -> NDArray[Any]:
    """The rows of all processes; process r has rows r, r + number of processes, ..."""
    rows = np.empty((sum(map(len, shares)), *shares[0].shape[1:]), shares[0].dtype)
    for rank, share in enumerate(shares):
        rows[rank :: len(shares)] = share
    return rows
