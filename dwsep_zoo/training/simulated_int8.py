"""Training in simulated int8 (``recipe=qat``): weights learn to be rounded."""

from __future__ import annotations

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from torch.nn.modules.batchnorm import _BatchNorm  # the base of all batch norms

from dwsep_zoo.data import ImageData
from dwsep_zoo.data.loader import RawBatch
from dwsep_zoo.nn.int8 import Scheme, Simulated
from dwsep_zoo.training.classifier import LitClassifier

CALIBRATION = 256
"""Training pictures that the ranges of activations are taken from."""


class SimulatedInt8(Callback):
    """Trains, validates and tests a network as int8 would compute it.

    Norms keep their statistics. Ranges of activations are taken anew from the same training
    pictures before every epoch and every evaluation.

    Args:
        scheme: of the weights' scales.
    """

    def __init__(self, scheme: Scheme):
        self.scheme = scheme
        self.ranges: torch.Tensor | None = None  # of the epoch, where a checkpoint had them
        self.kept: list[RawBatch] = []  # decoded once

    def state_dict(self) -> dict[str, object]:
        return {"ranges": self.ranges}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor | None]) -> None:
        self.ranges = state_dict["ranges"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, LitClassifier)
        data: ImageData = trainer.datamodule  # type: ignore[attr-defined]
        size = (data.in_chans, data.image_size, data.image_size)
        if pl_module.simulated is None:
            pl_module.simulated = Simulated(pl_module.model, self.scheme, size)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._freeze_norms(pl_module)  # perhaps in the middle of an epoch
        if self.ranges is not None:
            self._simulated(pl_module).ranges = self.ranges

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._freeze_norms(pl_module)
        self._calibrate(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._calibrate(trainer, pl_module)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._calibrate(trainer, pl_module)

    def _calibrate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: ImageData = trainer.datamodule  # type: ignore[attr-defined]
        self.kept = self.kept or list(data.statistics_dataloader(CALIBRATION))
        simulated = self._simulated(pl_module)
        ranges = simulated.calibrate(
            data.prepare_batch(move_data_to_device(batch, pl_module.device))[0]
            for batch in self.kept
        )
        if trainer.world_size > 1:
            shares = [ranges] * trainer.world_size
            torch.distributed.all_gather_object(shares, ranges)
            low, high = torch.stack(shares).unbind(-1)
            ranges = torch.stack([low.amin(0), high.amax(0)], -1)
        simulated.ranges = self.ranges = ranges

    @staticmethod
    def _simulated(pl_module: L.LightningModule) -> Simulated:
        assert isinstance(pl_module, LitClassifier)
        assert pl_module.simulated is not None
        return pl_module.simulated

    @staticmethod
    def _freeze_norms(pl_module: L.LightningModule) -> None:
        for module in pl_module.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
