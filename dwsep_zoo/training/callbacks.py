"""Callbacks: the table of epochs, and interruption."""

from __future__ import annotations

import csv
import io
import logging
import os
import signal
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from dwsep_zoo.files import atomic_write
from dwsep_zoo.schema.record import RecordFile
from dwsep_zoo.signals import END, handle, restore

log = logging.getLogger("dwsep_zoo")

METRICS = (
    *("train/loss", "train/acc", "val/loss", "val/acc", "val/acc_top5", "val/balanced_acc"),
    "train/lr",
)
COLUMNS = ("epoch", *METRICS, "images_per_second", "seconds")


class EpochTable(Callback):
    """One line an epoch, in the log and in ``metrics.csv``.

    The file holds fractions, training images a second (all processes together, without validation)
    and the seconds of the epoch with validation. When a run is resumed, the rows of the epochs that
    are trained again are dropped first.
    """

    def __init__(self, path: Path):
        self.path = path
        self.begin, self.images, self.validation = 0.0, 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Images and seconds of the epoch in progress, which may be resumed in its middle."""
        return {"images": self.images, "seconds": time.perf_counter() - self.begin}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images = state_dict["images"]
        self.begin = time.perf_counter() - state_dict["seconds"]

    def rows(self) -> list[dict[str, float]]:
        """The table; values that were not measured are left out of their row."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]

    def seconds(self) -> float:
        """Training and validation of all epochs, those before an interruption included."""
        return sum(row["seconds"] for row in self.rows())

    def images_per_second(self) -> float | None:
        """Training speed of the median epoch."""
        speeds = [row["images_per_second"] for row in self.rows()]
        return statistics.median(speeds) if speeds else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._write([row for row in self.rows() if row["epoch"] <= trainer.current_epoch])

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begin, self.images, self.validation = time.perf_counter(), 0, 0.0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.images += len(batch[1])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation_begin = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation = time.perf_counter() - self.validation_begin

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        epoch = trainer.current_epoch + 1
        seconds = time.perf_counter() - self.begin
        speed = self.images * trainer.world_size / (seconds - self.validation)
        pl_module.log("perf/images_per_second", speed, sync_dist=trainer.world_size > 1)
        if not trainer.is_global_zero:
            return
        row = {"epoch": epoch, **{k: values[k] for k in METRICS if k in values}}
        self._write([*self.rows(), {**row, "images_per_second": speed, "seconds": seconds}])
        line = f"epoch {epoch:3}/{trainer.max_epochs}   train loss {values['train/loss']:.3f}"
        line += f" acc {values['train/acc']:.2%}"
        if "val/acc" in values:
            line += f"   val loss {values['val/loss']:.3f} acc {values['val/acc']:.2%}"
        log.info("%s   %.0f images/s", line, speed)

    def _write(self, rows: list[dict[str, float]]) -> None:
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "epoch": int(row["epoch"])} for row in rows)
        atomic_write(self.path, file.getvalue())


class Interrupted(Exception):
    """The user stopped the training; its state is saved."""


class FirstStep(Callback):
    """Tells the record of a run that its first step is done."""

    def __init__(self, record: RecordFile):
        self.record = record

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.record.begun = True


class SaveOnInterrupt(Callback):
    """On ctrl-C, a termination signal or a hang-up: finish the step, save ``last.ckpt``, stop.

    A second one stops at once. One after the last step stops the run before its test, if the last
    epoch is saved.

    Args:
        checkpoint: ``last.ckpt``.
        every_n_epochs: interval at which it is written anyway.
    """

    def __init__(self, checkpoint: Path, every_n_epochs: int):
        self.checkpoint = checkpoint
        self.every_n_epochs = every_n_epochs
        self.requested = False
        self.before: Mapping[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not sooner: Lightning has put a handler of its own before this one until then.
        self.process = os.getpid()
        self.before = handle(self._request, (signal.SIGINT, *END))

    def _request(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a forked worker, which has to end with the step
            return
        self.requested = True
        signal.signal(number, signal.default_int_handler)
        log.info("stopping after this step; once more stops at once")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        steps, inside = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if trainer.is_last_batch or inside:  # the gradients so far are not saved
            return
        # Several processes have to agree, which costs a synchronisation: not at every step then.
        if trainer.world_size > 1 and steps % 10 != 1:
            return
        if trainer.strategy.reduce_boolean_decision(self.requested, all=False):
            trainer.save_checkpoint(self.checkpoint)
            raise Interrupted(f"stopped in epoch {trainer.current_epoch + 1}")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Asked for at the end of an epoch. Was it saved as a whole? Else after the next step.
        if self.requested and trainer.world_size == 1 and self._saved(trainer):
            raise Interrupted(f"stopped after epoch {trainer.current_epoch}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The first that knows decides: a file may show later on another machine.
        stop = self.requested and self._saved(trainer)
        if trainer.strategy.reduce_boolean_decision(stop, all=False):
            raise Interrupted("stopped after the last epoch, before the test")
        if self.requested:
            log.info("last.ckpt lacks the last epoch, so the test follows; once more stops at once")

    def _saved(self, trainer: L.Trainer) -> bool:
        return trainer.current_epoch % self.every_n_epochs == 0 and self.checkpoint.exists()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        restore(self.before)
        self.before = {}
