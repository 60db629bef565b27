"""Lines of the log, and TensorBoard's HPARAMS, before and after a training."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO

import lightning as L
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import TensorBoardLogger

from dwsep_zoo.files import is_sweep
from dwsep_zoo.report.tensorboard import write_hparams
from dwsep_zoo.schema.measures import hparams_metrics
from dwsep_zoo.schema.record import LatencyRecord, RunRecord
from dwsep_zoo.schema.settings import Settings
from dwsep_zoo.terminal import fold
from dwsep_zoo.training.eval_views import describe_views
from dwsep_zoo.training.prepare import Prepared

log = logging.getLogger("dwsep_zoo")


class TerminalLines(logging.StreamHandler[TextIO]):
    """Lines of the log on standard output, folded between words where it is a terminal.

    A line takes the place of the progress bar, which comes back below.
    """

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return fold(text) if self.stream.isatty() else text

    def emit(self, record: logging.LogRecord) -> None:
        with Tqdm.external_write_mode(self.stream):
            super().emit(record)


def say_prepared(settings: Settings, prepared: Prepared) -> None:
    """Log the network, its cost and its data."""
    chans, height, width = prepared.cost.input_size
    log.info(
        "model %s, conv=%s, width %g, output stride %d: %s parameters, %.2f M MACs at %d x %d x %d",
        settings.model.name,
        settings.conv.name,
        prepared.network["width_mult"],
        prepared.network["output_stride"],
        f"{prepared.cost.params:,}",
        prepared.cost.macs / 1e6,
        chans,
        height,
        width,
    )
    data = prepared.data
    log.info(
        "data %s: %d classes; images: %s",
        data.name,
        data.num_classes,
        ", ".join(f"{len(images):,} {split}" for split, images in data.splits.items()),
    )
    weights = settings.model.pretrained or settings.ckpt_path or settings.resume
    if settings.recipe.freeze_epochs and not weights:
        log.warning(
            "recipe.freeze_epochs=%d first trains a classifier of random features, as "
            "model.pretrained is not set",
            settings.recipe.freeze_epochs,
        )
    if data.mixing:
        log.info("training images are mixed; accuracy on them counts the class of the larger share")


def say_result(settings: Settings, folder: Path, record: RunRecord) -> None:
    """Log the accuracy, the latency, and where to look."""
    accuracy = record.metrics.get("test/acc")
    if accuracy is not None:
        which = "the last state"
        if record.best_epoch is not None:
            which = f"the checkpoint of epoch {record.best_epoch}, the best on validation"
        if averaged := describe_views(settings.recipe):
            which += f"; {averaged}"
        scores, balanced = record.per_class, ""
        if scores and scores.unequal and scores.balanced_acc is not None:
            balanced = f", balanced {100 * scores.balanced_acc:.2f} %"
        log.info("test accuracy %.2f %%%s (%s)", 100 * accuracy, balanced, which)
    log.info("%s   training %.0f s", latency_line(record.latency[0]), record.time.train_s)
    if is_sweep(folder.parent):
        return  # which says where to look when it ends
    log.info("run folder  %s", folder)
    logs = Path(settings.paths.log_dir)
    if logs.resolve() not in folder.resolve().parents:  # the run was sent elsewhere
        logs = folder
    log.info("look at it  tensorboard --logdir %s", logs)
    log.info("all runs    dwsep compare %s", logs)


def latency_line(latency: LatencyRecord) -> str:
    """A latency with its conditions."""
    images = "one image" if latency.batch_size == 1 else f"{latency.batch_size} images"
    return (
        f"latency {latency.p50_ms:.2f} ms for {images} (median of {latency.runs}; "
        f"{latency.device_name}, {latency.threads} threads, {latency.precision}, "
        f"{latency.memory_format}, {latency.runtime})"
    )


def log_hparams(
    trainer: L.Trainer, settings: Settings, prepared: Prepared, record: RunRecord
) -> None:
    """Fill TensorBoard's HPARAMS, at the start with the known values and at the end with all."""
    if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
        return
    folder = Path(trainer.logger.log_dir)
    write_hparams(
        trainer.logger.experiment,
        {
            "model": settings.model.name,
            "conv": settings.conv.name,
            "seed": settings.seed,
            "width_mult": float(prepared.network["width_mult"]),
            "output_stride": prepared.network["output_stride"],
            "data": settings.data.name,
            "epochs": settings.trainer.max_epochs,
            "batch_size": prepared.data.batch_size,
            "lr": settings.recipe.lr,
            "weight_decay": settings.recipe.weight_decay,
        },
        hparams_metrics(record),
        trial=(
            f"{settings.model.name} {settings.conv.name} s{settings.seed:02} "
            f"{folder.parent.name}/{folder.name}"
        ),
        finished=record.status == "finished",
        step=trainer.global_step,
    )
