"""Lightning's Trainer, set up for a run."""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from dwsep_zoo.analysis.device import has_fast_bfloat16
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.measures import TEST_ACC
from dwsep_zoo.schema.settings import Recipe, Settings, TrainerSettings
from dwsep_zoo.training.average import Average
from dwsep_zoo.training.callbacks import SaveOnInterrupt
from dwsep_zoo.training.checkpoints import LAST, CheckpointStore
from dwsep_zoo.training.ddp import DataParallel, SyncedNorms
from dwsep_zoo.training.finetune import FineTune
from dwsep_zoo.training.non_finite import StopOnNonFinite
from dwsep_zoo.training.norm_statistics import PreciseStatistics
from dwsep_zoo.training.simulated_int8 import SimulatedInt8
from dwsep_zoo.training.trackers import Tracker

log = logging.getLogger("dwsep_zoo")

OWN_KEYS = {"channels_last", "compile"}  # of the trainer group, not Lightning's


def create_trainer(
    settings: Settings,
    folder: Path,
    callbacks: list[Callback],
    *,
    first_step: int = 0,
    save: bool = True,
) -> L.Trainer:
    """Make the Trainer of a run that writes into ``folder``.

    Args:
        settings: those of the run.
        folder: the run's.
        callbacks: added to those of checkpoints, progress bar, interrupts and the recipe.
        first_step: of this process; later steps are those of an interrupted run and are dropped
            from its TensorBoard curves.
        save: write checkpoints and curves; a trial of a search needs none.

    Raises:
        UserError: for options that Lightning refuses on this machine.
    """
    _quiet()
    options = _lightning_options(settings.trainer, folder)
    plugins: list[Any] = [CheckpointStore()]
    if options.pop("sync_batchnorm"):
        plugins.append(SyncedNorms())
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # Lightning's would save into the working folder and have the job begin a new run.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    save = save and not options.get("fast_dev_run")
    callbacks = [*callbacks, *_recipe_callbacks(settings.recipe)]
    callbacks += _saving_callbacks(settings, folder / "checkpoints") if save else []
    if patience := settings.callbacks.early_stopping:
        callbacks.append(StopEarly("val/acc", mode="max", patience=patience))
    if options["enable_progress_bar"]:
        callbacks.append(TQDMProgressBar(leave=False))
    try:
        return L.Trainer(
            **options,
            callbacks=callbacks,
            logger=_loggers(settings, folder, first_step) if save else False,
            enable_checkpointing=save,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            plugins=plugins,
            use_distributed_sampler=False,  # the data module gives each process its share
        )
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def _loggers(settings: Settings, folder: Path, first_step: int) -> list[Logger]:
    loggers: list[Logger] = []
    if settings.logger.tensorboard:
        purge = first_step or None
        loggers.append(
            RunLogger(folder, name="", version="", default_hp_metric=False, purge_step=purge)
        )
    if settings.logger.tracker:
        loggers.append(Tracker(settings, folder))
    return loggers


def _lightning_options(settings: TrainerSettings, folder: Path) -> dict[str, Any]:
    """Arguments of Lightning's Trainer, with ``auto`` decided for this machine."""
    device = device_of(settings.accelerator).type
    auto = {
        "precision": auto_precision(device),
        "sync_batchnorm": True,
        "enable_progress_bar": sys.stderr.isatty(),
    }
    options = settings.model_dump(mode="json", exclude=OWN_KEYS, exclude_none=True)
    options |= {key: value for key, value in auto.items() if options[key] == "auto"}
    if options["strategy"] == "ddp":
        options["strategy"] = DataParallel(folder)
    return options


def _recipe_callbacks(recipe: Recipe) -> list[Callback]:
    callbacks: list[Callback] = []
    if recipe.freeze or recipe.freeze_epochs or recipe.layer_decay:
        callbacks.append(FineTune(recipe.freeze or (), recipe.freeze_epochs or 0))
    if recipe.simulated_int8:  # freezes norms before a callback looks at them
        callbacks.append(SimulatedInt8(recipe.simulated_int8))
    if recipe.model_ema_decay:  # averages a step before a callback saves it
        callbacks.append(Average(recipe.model_ema_decay, warmup=recipe.model_ema_warmup))
    if recipe.norm_statistics == "precise":  # of the average, which has taken its place by then
        callbacks.append(PreciseStatistics())
    return callbacks


def _saving_callbacks(settings: Settings, checkpoints: Path) -> list[Callback]:
    every_n_epochs = settings.callbacks.save_every_n_epochs
    return [
        OneFile(checkpoints, "best", 1, monitor="val/acc", mode="max"),
        # Lightning's save_last saves only after epochs that were the best so far.
        OneFile(checkpoints, "last", every_n_epochs),
        StopOnNonFinite(checkpoints / LAST),  # before such a state could be saved
        SaveOnInterrupt(checkpoints / LAST, every_n_epochs),
    ]


class StopEarly(EarlyStopping):
    """Trains no further epoch when a run that has stopped early goes on."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class OneFile(ModelCheckpoint):
    """Keeps one checkpoint, ``folder/name.ckpt``, and its score after that folder has moved."""

    def __init__(self, folder: Path, name: str, every_n_epochs: int, **options: Any):
        super().__init__(
            folder,
            filename=name,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            **options,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        path = Path(str(self.dirpath), f"{self.filename}.ckpt")
        if path.exists():  # with ckpt_path= the folder is new and empty
            scores = state_dict["best_k_models"].values()
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_k_models": {str(path): score for score in scores},
                **dict.fromkeys(("best_model_path", "kth_best_model_path"), str(path)),
            }
        super().load_state_dict(state_dict)


class RunLogger(TensorBoardLogger):
    """TensorBoard in the run's own folder, without a file of parameters: the record has them.

    It leaves out Lightning's scalar ``epoch`` and what HPARAMS adds at the end of a run.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        kept = {k: v for k, v in metrics.items() if k not in ("epoch", TEST_ACC.tag)}
        super().log_metrics(kept, step)

    def save(self) -> None:
        self.experiment.flush()


def auto_precision(device: str) -> str:
    """``bf16-mixed`` where the hardware is faster in it than in float32, else ``32-true``."""
    return "bf16-mixed" if has_fast_bfloat16(device) else "32-true"


def check_space(settings: Settings, folder: Path, size_bytes: int, start: Path | None) -> None:
    """Raises UserError if the checkpoints of a run cannot be stored.

    Args:
        settings: those of the run.
        folder: the run's.
        size_bytes: of the network's state.
        start: the checkpoint to go on from, which is as large as the next ones.
    """
    recipe = settings.recipe
    tensors = 2 + (recipe.optimizer not in ("sgd", "muon")) + bool(recipe.model_ema_decay)
    size = start.stat().st_size if start else tensors * size_bytes
    files = 2 if settings.resume else 4  # best, last, the one before, and the one being written
    need, free = files * size, shutil.disk_usage(folder).free
    if free < need:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free; the checkpoints of this run need about "
            f"{need / 1e6:.0f} MB"
        )


def device_of(accelerator: str) -> torch.device:
    """The device that Lightning takes for ``trainer.accelerator``."""
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cuda" if accelerator == "cuda" else "cpu")


def _quiet() -> None:
    """Keep Lightning's notices out of the log, which says the same."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers.profiler").setLevel(logging.INFO)  # asked for
    for message in (
        ".*does not have many workers.*",  # sets in memory need none
        ".*smaller than the logging interval.*",
        ".*could not find the monitored key.*",  # trained without validation
        '.*callbacks used to create the checkpoint.*"(OneFile|StopEarly).*',  # they may change
        ".*Checkpoint directory .* exists and is not empty.*",  # resumed runs
        ".*The dirpath has changed from.*",  # ckpt_path goes on in a new folder
        ".*isn't in the list of.*weights_only.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # lightning 2.6 with torch 2.15
        ".*GPU available but not used.*",
        ".*`srun` command is available.*",  # on a cluster's login node
        ".*AccumulateGrad node's stream does not match.*",  # CUDA graphs
    ):
        warnings.filterwarnings("ignore", message=message)
