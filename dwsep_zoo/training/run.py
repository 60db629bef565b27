"""``train(settings)``: one run, from its settings to ``result.json``."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from dwsep_zoo.errors import UserError
from dwsep_zoo.ops import native
from dwsep_zoo.report.classes import per_class
from dwsep_zoo.report.predictions import FILE_NAME as PREDICTIONS
from dwsep_zoo.schema.record import RecordFile, RunRecord, now
from dwsep_zoo.schema.settings import Settings
from dwsep_zoo.training.assemble import create_module
from dwsep_zoo.training.batch_size import with_batch_size
from dwsep_zoo.training.callbacks import EpochTable, FirstStep
from dwsep_zoo.training.check import Plan, Start, check
from dwsep_zoo.training.checkpoints import load_checkpoint, set_damaged_aside
from dwsep_zoo.training.classifier import LitClassifier, check_classes_of, check_network_of
from dwsep_zoo.training.compile import Compile
from dwsep_zoo.training.neighbours import shared_cores
from dwsep_zoo.training.norm_statistics import keep_norms, recall_norms
from dwsep_zoo.training.out_of_memory import naming_a_batch_size
from dwsep_zoo.training.predictions import KeepPredictions
from dwsep_zoo.training.prepare import Prepared, prepare
from dwsep_zoo.training.process_memory import PeakMemory, keep_memory
from dwsep_zoo.training.profile import profile
from dwsep_zoo.training.recording import recording
from dwsep_zoo.training.say import latency_line, log_hparams, say_prepared, say_result
from dwsep_zoo.training.search import search_recipe
from dwsep_zoo.training.teacher import check_same_teacher
from dwsep_zoo.training.trackers import tracked
from dwsep_zoo.training.trainer import check_space, create_trainer
from dwsep_zoo.weights.classes import fit_classifier
from dwsep_zoo.zoo import create_model

log = logging.getLogger("dwsep_zoo")


def train(settings: Settings) -> RunRecord:
    """Check, prepare, fit, test once with the best checkpoint, measure, record.

    Args:
        settings: those of the run, see ``configs/train.yaml``.

    Returns:
        The record, which is in ``result.json`` as well.

    Raises:
        UserError: for input that cannot work; before anything is written where that can be known.
        SystemExit: with code 130 if the user stopped the training; its state is saved.
    """
    return run_plan(check(settings))


def run_plan(plan: Plan) -> RunRecord:
    """Run what has been checked; see :func:`train`."""
    begin = time.perf_counter()
    keep_memory()
    with recording(plan) as record, shared_cores():
        prepared = _prepare(plan, record)
        settings = with_batch_size(plan.settings, prepared)
        record.update(config=settings.plain())
        settings = _search(plan, settings, prepared, record)
        training = _assemble(plan, settings, prepared, record)
        log_hparams(training.trainer, settings, prepared, record.record)
        with tracked(training.trainer) as tracker:
            tested = _fit_and_test(training, plan.start)
            if training.trainer.is_global_zero:
                record.update(
                    **tested,
                    **_measure(training, plan.folder.name),
                    time={
                        "train_s": training.table.seconds(),
                        "total_s": time.perf_counter() - begin,
                    },
                    status="finished",
                    finished=now(),
                )
                _close(training, record.record)
                _leave_pictures(training, plan.folder, record.record)
                if tracker:
                    tracker.log_end(record.record, training.trainer.global_step)
                say_result(settings, plan.folder, record.record)
    return record.record


@dataclass(frozen=True)
class Training:
    """The parts of a training that its phases share."""

    settings: Settings
    prepared: Prepared
    module: LitClassifier
    trainer: L.Trainer
    table: EpochTable
    predictions: KeepPredictions
    compiling: Compile
    peak: PeakMemory

    @property
    def device(self) -> torch.device:
        return self.trainer.strategy.root_device


def _prepare(plan: Plan, record: RecordFile) -> Prepared:
    """Load the data, build the network, and record both."""
    settings = plan.settings
    L.seed_everything(settings.seed, workers=True, verbose=False)
    prepared = prepare(settings, match=plan.earlier.match if plan.earlier else None)
    prepared.data.list_skipped(plan.folder)
    conv = {**settings.conv.plain(), **prepared.network["conv"]}  # weights may bring options
    taught = prepared.teacher.record(prepared.data) if prepared.teacher else None
    check_same_teacher(plan.earlier, taught)
    described = prepared.data.describe()
    _check_same_data(plan, described)
    record.update(
        conv_options={key: value for key, value in conv.items() if key != "name"},
        width_mult=prepared.network["width_mult"],
        output_stride=prepared.network["output_stride"],
        network=prepared.network,
        match=prepared.match.plain() if prepared.match else None,
        data=described,
        input_size=list(prepared.cost.input_size),
        params=prepared.cost.params,
        macs=prepared.cost.macs,
        size_bytes=prepared.size_bytes,
        teacher=taught.plain() if taught else None,
    )
    check_space(settings, plan.folder, prepared.size_bytes, plan.start.path if plan.start else None)
    if plan.start:
        check_network_of(plan.start.network, prepared.network)
        if settings.train:
            check_classes_of(plan.start.class_names, prepared.data.class_names)
    say_prepared(settings, prepared)
    if prepared.teacher and taught:
        prepared.teacher.say(taught)
    return prepared


def _check_same_data(plan: Plan, found: Mapping[str, object]) -> None:
    """Raises UserError if a run that goes on began with other pictures, splits or sizes of them."""
    if plan.earlier is None:
        return
    before = plan.earlier.data
    if before.fingerprint and before.fingerprint != found["fingerprint"]:
        raise UserError(
            f"resume={plan.folder}: its pictures have changed since it began (fingerprint "
            f"{before.fingerprint}, now {found['fingerprint']}); bring them back, or begin another "
            "run"
        )
    if before.image_size and before.image_size != found["image_size"]:
        raise UserError(
            f"resume={plan.folder}: it began with images of {before.image_size} pixels, and they "
            f"have {found['image_size']} now; begin another run"
        )


def _search(plan: Plan, settings: Settings, prepared: Prepared, record: RecordFile) -> Settings:
    """The settings, with the recipe that was found for this variant if one is searched for."""
    if not settings.hparams_search:
        return settings
    if not len(prepared.data.splits["val"]):
        raise UserError("hparams_search needs validation images; set data.val_fraction")

    def trial(values: dict[str, float], number: int) -> float:
        return _trial(settings, prepared, plan.folder, values, number)

    found = plan.earlier.search if plan.earlier else None
    found = found or search_recipe(settings, plan.folder, trial)
    settings = settings.replace(recipe={**settings.recipe.plain(), **found.best})
    record.update(search=found.plain(), config=settings.plain())
    L.seed_everything(settings.seed, workers=True, verbose=False)
    return settings


def _trial(
    settings: Settings, prepared: Prepared, folder: Path, values: dict[str, float], number: int
) -> float:
    """Validation accuracy of a training with other values of the recipe; nothing is kept."""
    search = settings.hparams_search
    assert search is not None
    seed = search.seed + number
    trial = settings.replace(
        recipe={**settings.recipe.plain(), **values},
        trainer={
            **settings.trainer.plain(),
            "max_epochs": search.epochs or settings.trainer.max_epochs,
            "enable_progress_bar": False,
        },
        seed=seed,
    )
    L.seed_everything(seed, workers=True, verbose=False)
    prepared.data.seed = seed
    try:
        model = create_model(**prepared.network, pretrained=settings.model.pretrained)
        trainer = create_trainer(trial, folder, [], save=False)
        with naming_a_batch_size(prepared, trainer.strategy.root_device):
            trainer.fit(create_module(trial, prepared, model), datamodule=prepared.data)
    finally:
        prepared.data.seed = settings.seed
    return float(trainer.callback_metrics["val/acc"])


def _assemble(plan: Plan, settings: Settings, prepared: Prepared, record: RecordFile) -> Training:
    """Make the Lightning module, its callbacks and its Trainer."""
    batch_size, input_size = prepared.data.batch_size, prepared.cost.input_size
    module = create_module(settings, prepared, prepared.model)
    table = EpochTable(plan.folder / "metrics.csv")
    predictions = KeepPredictions(plan.folder / PREDICTIONS)
    as_it_is = settings.recipe.simulated_int8 or (
        prepared.teacher and prepared.teacher.compares_maps
    )
    option = False if as_it_is else settings.trainer.compile
    compiling = Compile(option, input_size, batch_size)
    trainer = create_trainer(
        settings,
        plan.folder,
        [table, predictions, compiling, FirstStep(record)],
        first_step=plan.start.step if plan.start else 0,
    )
    peak = PeakMemory(trainer.strategy.root_device)
    return Training(settings, prepared, module, trainer, table, predictions, compiling, peak)


def _fit_and_test(training: Training, start: Start | None) -> dict[str, object]:
    checkpoint = start.path if start else None
    if training.settings.train:
        checkpoint = _fit(training, start)
    return _test(training, checkpoint)


def _fit(training: Training, start: Start | None) -> Path | None:
    """Train; returns the checkpoint that was best in validation, if there was validation."""
    if training.device.type == "cpu":
        log.info("kernels of norms and depthwise gradients: %s", native.status())
    if start and start.warning and training.trainer.is_global_zero:
        set_damaged_aside(start.path.parent)
    with naming_a_batch_size(training.prepared, training.device):
        training.trainer.fit(
            training.module,
            datamodule=training.prepared.data,
            ckpt_path=start.path if start else None,
            weights_only=True,
        )
    best = getattr(training.trainer.checkpoint_callback, "best_model_path", None)
    return Path(best) if best else None


def _test(training: Training, checkpoint: Path | None) -> dict[str, object]:
    """Load the checkpoint and test it: ``metrics`` of its epoch and of the test, ``best_epoch``."""
    metrics: dict[str, float] = {}
    results: dict[str, object] = {"metrics": metrics}
    if checkpoint:
        saved = load_checkpoint(checkpoint)
        training.module.load_state_dict(saved["state_dict"])
        if training.settings.train:
            recall_norms(training.trainer, saved)
        else:
            fit_classifier(
                training.prepared.model,
                training.prepared.data.class_names,
                saved["dwsep_zoo"]["class_names"],
                f"ckpt_path={checkpoint}",
                training=False,
            )
        results["best_epoch"] = saved["epoch"] + 1
        for row in training.table.rows():
            if row["epoch"] == results["best_epoch"]:
                metrics |= {
                    k: v for k, v in row.items() if k.startswith(("train/l", "train/a", "val/"))
                }
    if training.settings.test:
        (tested,) = training.trainer.test(
            training.module, datamodule=training.prepared.data, verbose=False
        )
        metrics |= tested
        if kept := training.predictions.kept:
            scores = per_class(kept, training.prepared.data.num_classes)
            results["per_class"] = scores.plain()
        if checkpoint and training.settings.train and training.trainer.is_global_zero:
            keep_norms(training.module, saved, checkpoint)
    return results


def _measure(training: Training, name: str) -> dict[str, object]:
    """Latency, memory and roofline of the network, and facts about its training."""
    prepared, device = training.prepared, training.device
    memory = {"peak_mb": training.peak.megabytes()}
    (cost,) = profile(
        {name: prepared.model.float()},  # also if it was trained in float64
        prepared.cost.input_size,
        training.settings.profile,
        device,
        train_batch_size=prepared.data.batch_size,
    )
    choice = training.compiling.choice
    return {
        "latency": cost["latency"],
        "memory": {**memory, **cost["memory"]},
        "roofline": cost["roofline"],
        "images_per_second": training.table.images_per_second(),
        "epochs": training.trainer.fit_loop.epoch_progress.state_dict()["current"]["processed"],
        "precision": str(training.trainer.precision),
        "device": device.type,
        "compiled": choice.compiled if choice else None,
        "own_kernels": device.type == "cpu" and native.native().library is not None,
    }


def _close(training: Training, record: RunRecord) -> None:
    """Write the final values into TensorBoard."""
    trainer = training.trainer
    log_hparams(trainer, training.settings, training.prepared, record)
    if isinstance(trainer.logger, TensorBoardLogger):
        trainer.logger.experiment.add_text("latency", latency_line(record.latency[0]))
        trainer.logger.finalize("success")  # Lightning did, before this opened another file


def _leave_pictures(training: Training, folder: Path, record: RunRecord) -> None:
    """Draw what was learned, behind all that is measured and recorded."""
    settings = training.settings
    if not settings.logger.pictures or settings.trainer.fast_dev_run:
        return
    from dwsep_zoo.training.pictures import leave_pictures  # Matplotlib takes time and memory

    kept, prepared = training.predictions.kept, training.prepared
    leave_pictures(
        folder, record, settings, training.table.rows(), kept, prepared.data, prepared.model
    )
