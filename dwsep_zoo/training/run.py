"""``train(cfg)``: one run, from a configuration to ``result.json``."""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger

from dwsep_zoo.analysis.budget import Match
from dwsep_zoo.data.options import at_least
from dwsep_zoo.errors import UserError
from dwsep_zoo.models import ConvNet, create_model
from dwsep_zoo.ops import native
from dwsep_zoo.report.tensorboard import write_hparams
from dwsep_zoo.training.callbacks import EpochTable, Interrupted, Predictions
from dwsep_zoo.training.classifier import LitClassifier, check_checkpoint
from dwsep_zoo.training.compile import Compile
from dwsep_zoo.training.failures import is_out_of_memory, out_of_memory
from dwsep_zoo.training.malloc import keep_memory
from dwsep_zoo.training.optim import check_recipe
from dwsep_zoo.training.peak import PeakMemory
from dwsep_zoo.training.profile import check_profile, profile
from dwsep_zoo.training.record import Record, now, provenance
from dwsep_zoo.training.search import check_search, search_recipe
from dwsep_zoo.training.setup import Setup, set_up
from dwsep_zoo.training.trainer import check_space, check_trainer, create_trainer
from dwsep_zoo.training.views import in_words

log = logging.getLogger("dwsep_zoo")


def train(cfg: dict[str, Any]) -> dict[str, Any]:
    """Train, test once with the best checkpoint, measure, record.

    Args:
        cfg: the configuration as a plain dictionary, see ``configs/train.yaml``.

    Returns:
        What stands in ``result.json``.

    Raises:
        UserError: for input that cannot work, before any training where that can be known.
        SystemExit: with code 130 when the user stopped the training; its state is saved.
    """
    folder = Path(cfg["paths"]["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _earlier(cfg, folder)
    first = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0
    with _logging_to(folder / "train.log", enabled=first):
        record = Record(folder, enabled=first)
        record.update(
            name=folder.name,
            model=cfg["model"]["name"],
            conv=cfg["conv"]["name"],
            conv_options={k: v for k, v in cfg["conv"].items() if k != "name"},
            width_mult=cfg["model"]["width_mult"],
            seed=cfg["seed"],
            tags=cfg["tags"],
            config=cfg,
            started=now(),
            **provenance(),
        )
        try:
            _run(cfg, folder, record, earlier)
        except Interrupted as stop:
            record.update(status="interrupted", error=str(stop), finished=now())
            log.info("%s; saved checkpoints/last.ckpt. Go on with: resume=%s", stop, folder)
            sys.exit(130)
        except (KeyboardInterrupt, SystemExit):  # lightning exits when it is interrupted
            record.update(status="interrupted", error="stopped at once", finished=now())
            last = folder / "checkpoints" / "last.ckpt"
            how = f"go on from the last checkpoint with resume={folder}"
            log.info("stopped at once; %s", how if last.exists() else "nothing was saved yet")
            sys.exit(130)
        except Exception as error:
            message = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, OSError):  # a full or vanished disk
                message = f"{error.strerror or error}: {error.filename or folder}"
            with suppress(OSError):
                record.update(status="failed", error=message, finished=now())
            if isinstance(error, OSError | MisconfigurationException):
                raise UserError(message) from error
            if not isinstance(error, UserError):
                log.exception("the run failed")
            raise
        return record.values


def _run(cfg: dict[str, Any], folder: Path, record: Record, earlier: dict[str, Any]) -> None:
    begin = time.perf_counter()
    keep_memory()
    check_recipe(cfg["recipe"])
    check_trainer(cfg["trainer"])
    check_search(cfg.get("hparams_search"), cfg["recipe"], cfg["trainer"]["strategy"])
    check_profile(cfg["profile"])
    if cfg["match"] == "latency" and cfg["trainer"]["strategy"] == "ddp":
        raise UserError("match=latency cannot run with trainer=ddp: each process would measure")
    at_least("seed", cfg["seed"], 0)
    # Hydra writes multirun.yaml into the folder of a sweep.
    if cfg["trainer"]["strategy"] == "ddp" and (folder.parent / "multirun.yaml").is_file():
        raise UserError("trainer=ddp starts processes of its own and cannot run inside -m")
    checkpoint = _checkpoint_to_load(cfg)
    L.seed_everything(cfg["seed"], workers=True, verbose=False)
    setup = set_up(cfg, match=Match.from_dict(earlier["match"]) if earlier.get("match") else None)
    record.update(
        width_mult=setup.network["width_mult"],
        output_stride=setup.network["output_stride"],
        network=setup.network,
        match=setup.match.as_dict() if setup.match else None,
        data=setup.data.describe(),
        input_size=list(setup.cost.input_size),
        params=setup.cost.params,
        macs=setup.cost.macs,
        size_bytes=setup.size_bytes,
    )
    check_space(folder, setup.size_bytes)
    _say_setup(cfg, setup)
    if cfg.get("hparams_search"):
        found = earlier.get("search") or search_recipe(
            cfg, folder, partial(_trial, cfg, setup, folder)
        )
        cfg = {**cfg, "recipe": {**cfg["recipe"], **found["best"]}}
        record.update(search=found, config=cfg)
        L.seed_everything(cfg["seed"], workers=True, verbose=False)

    first_step = 0
    if checkpoint:
        saved = _load(checkpoint)
        check_checkpoint(saved, setup.description())
        first_step = saved["global_step"]
        if cfg["ckpt_path"] and cfg["train"]:
            _check_epochs_left(cfg, saved["loops"]["fit_loop"]["epoch_progress"]["current"])

    module = _module(cfg, setup, setup.model)
    table = EpochTable(folder / "metrics.csv")
    compiling = Compile(cfg["trainer"]["compile"], setup.cost.input_size, setup.data.batch_size)
    callbacks = [table, Predictions(folder / "predictions.npz"), compiling]
    trainer = create_trainer(cfg, folder, callbacks, first_step=first_step)
    if cfg["train"] and trainer.strategy.root_device.type == "cpu":
        log.info("kernels of norms and depthwise gradients: %s", native.status())
    peak = PeakMemory(trainer.strategy.root_device)
    _log_hparams(trainer, cfg, setup, {})
    if cfg["train"]:
        try:
            trainer.fit(module, datamodule=setup.data, ckpt_path=checkpoint, weights_only=True)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(
                setup.model,
                setup.cost.input_size,
                setup.data.batch_size,
                trainer.strategy.root_device,
            ) from error
        checkpoint = getattr(trainer.checkpoint_callback, "best_model_path", None)

    metrics: dict[str, float] = {}
    if checkpoint:
        saved = _load(checkpoint)
        module.load_state_dict(saved["state_dict"])
        best_epoch = saved["epoch"] + 1
        record.update(best_epoch=best_epoch)
        for row in table.rows():
            if row["epoch"] == best_epoch:
                metrics = {
                    k: v for k, v in row.items() if k.startswith(("train/l", "train/a", "val/"))
                }
    if cfg["test"]:
        (tested,) = trainer.test(module, datamodule=setup.data, verbose=False)
        metrics.update(tested)
    if not trainer.is_global_zero:
        return

    device = trainer.strategy.root_device
    memory = {"peak_mb": peak.megabytes()}
    (cost,) = profile(
        {folder.name: setup.model},
        setup.cost.input_size,
        cfg["profile"],
        device,
        train_batch_size=setup.data.batch_size,
    )
    record.update(
        status="finished",
        metrics=metrics,
        latency=cost["latency"],
        memory={**memory, **cost["memory"]},
        roofline=cost["roofline"],
        images_per_second=table.images_per_second(),
        time={"train_s": table.seconds(), "total_s": time.perf_counter() - begin},
        epochs=trainer.current_epoch,
        precision=str(trainer.precision),
        device=device.type,
        compiled=compiling.choice.compiled if compiling.choice else None,
        own_kernels=device.type == "cpu" and native.native().library is not None,
        finished=now(),
    )
    _log_hparams(trainer, cfg, setup, record.values)
    if isinstance(trainer.logger, TensorBoardLogger):
        trainer.logger.experiment.add_text("latency", _latency_line(record.values["latency"][0]))
        trainer.logger.finalize("success")  # Lightning did, before this opened another file
    _say_result(cfg, folder, record.values)


def _module(cfg: dict[str, Any], setup: Setup, model: ConvNet) -> LitClassifier:
    if cfg["trainer"]["channels_last"]:
        model.to(memory_format=torch.channels_last)
    return LitClassifier(
        model,
        num_classes=setup.data.num_classes,
        recipe=cfg["recipe"],
        seed=cfg["seed"],
        description=setup.description(),
    )


def _checkpoint_to_load(cfg: dict[str, Any]) -> Path | None:
    """``resume=`` names a run, ``ckpt_path=`` a file."""
    if not cfg["resume"] and not cfg["ckpt_path"]:
        return None
    key = "resume" if cfg["resume"] else "ckpt_path"
    path = Path(cfg[key])
    if cfg["resume"]:
        path = path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise UserError(f"{key}={cfg[key]}: there is no checkpoint {path}")
    return path


def _earlier(cfg: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The record of the run that is resumed, before anything of it is overwritten; else nothing.

    Raises:
        UserError: if that run is finished.
    """
    result = folder / "result.json"
    if not cfg["resume"] or not result.is_file():
        return {}
    done: dict[str, Any] = json.loads(result.read_text())
    if done["status"] == "finished" and done["epochs"] >= cfg["trainer"]["max_epochs"]:
        raise UserError(
            f"resume={cfg['resume']}: this run is finished; to train it further than its "
            f"{done['epochs']} epochs, set trainer.max_epochs"
        )
    return done


def _trial(
    cfg: dict[str, Any], setup: Setup, folder: Path, values: dict[str, float], number: int
) -> float:
    """Validation accuracy after a training with other values of the recipe, nothing of it kept."""
    options = cfg["hparams_search"]
    if not len(setup.data.splits["val"]):
        raise UserError("hparams_search needs validation images; set data.val_fraction")
    seed = options["seed"] + number
    trial = {**cfg, "recipe": {**cfg["recipe"], **values}, "seed": seed}
    trial["trainer"] = {
        **cfg["trainer"],
        "max_epochs": options["epochs"] or cfg["trainer"]["max_epochs"],
        "enable_progress_bar": False,
    }
    L.seed_everything(seed, workers=True, verbose=False)
    setup.data.seed = seed
    try:
        model = create_model(**setup.network, pretrained=cfg["model"]["pretrained"])
        module = _module(trial, setup, model)
        trainer = create_trainer(trial, folder, [], save=False)
        trainer.fit(module, datamodule=setup.data)
    finally:
        setup.data.seed = cfg["seed"]
    return float(trainer.callback_metrics["val/acc"])


def _check_epochs_left(cfg: dict[str, Any], progress: dict[str, int]) -> None:
    if progress["processed"] >= cfg["trainer"]["max_epochs"]:
        raise UserError(
            f"ckpt_path={cfg['ckpt_path']} has all of its {progress['processed']} epochs behind "
            "it; to train it further, set trainer.max_epochs"
        )


def _load(checkpoint: str | Path) -> dict[str, Any]:
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{checkpoint} cannot be read as a checkpoint: {reason}") from error


def _log_hparams(
    trainer: L.Trainer, cfg: dict[str, Any], setup: Setup, result: dict[str, Any]
) -> None:
    """Fill TensorBoard's HPARAMS, at the start with what is known and at the end with the rest."""
    if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
        return
    metrics = result.get("metrics", {})
    latency = result["latency"][0]["p50_ms"] if "latency" in result else None
    write_hparams(
        trainer.logger.experiment,
        {
            "model": cfg["model"]["name"],
            "conv": cfg["conv"]["name"],
            "width_mult": float(setup.network["width_mult"]),
            "output_stride": setup.network["output_stride"],
            "seed": cfg["seed"],
            "data": str(cfg["data"]["name"]),
            "epochs": cfg["trainer"]["max_epochs"],
            "batch_size": setup.data.batch_size,
            "lr": float(cfg["recipe"]["lr"]),
            "weight_decay": float(cfg["recipe"]["weight_decay"]),
        },
        {
            "test/acc": metrics.get("test/acc"),
            "val/acc": metrics.get("val/acc"),
            "perf/params": setup.cost.params,
            "perf/macs": setup.cost.macs,
            "perf/latency_ms_p50": latency,
            "perf/size_mb": setup.size_bytes / 1e6,
            "perf/train_s": result["time"]["train_s"] if "time" in result else None,
        },
        status=result.get("status", "running"),
        step=trainer.global_step,
    )


def _say_setup(cfg: dict[str, Any], setup: Setup) -> None:
    chans, height, width = setup.cost.input_size
    log.info(
        "model %s, conv=%s, width %g, output stride %d: %s parameters, %.2f M MACs at %d x %d x %d",
        cfg["model"]["name"],
        cfg["conv"]["name"],
        setup.network["width_mult"],
        setup.network["output_stride"],
        f"{setup.cost.params:,}",
        setup.cost.macs / 1e6,
        chans,
        height,
        width,
    )
    splits = setup.data.describe()["splits"]
    log.info(
        "data %s: %d classes; images: %s",
        setup.data.name,
        setup.data.num_classes,
        ", ".join(f"{n:,} {split}" for split, n in splits.items()),
    )


def _say_result(cfg: dict[str, Any], folder: Path, result: dict[str, Any]) -> None:
    if "test/acc" in result["metrics"]:
        which = "the last state"
        if "best_epoch" in result:
            which = f"the checkpoint of epoch {result['best_epoch']}, the best on validation"
        if averaged := in_words(cfg["recipe"]):
            which += f"; {averaged}"
        log.info("test accuracy %.2f %% (%s)", 100 * result["metrics"]["test/acc"], which)
    log.info("%s   training %.0f s", _latency_line(result["latency"][0]), result["time"]["train_s"])
    log.info("run folder  %s", folder)
    logs = Path(cfg["paths"]["log_dir"])
    if logs.resolve() not in folder.resolve().parents:  # hydra.run.dir is elsewhere
        logs = folder
    log.info("look at it  tensorboard --logdir %s", logs)
    log.info("all runs    dwsep compare %s", logs)


def _latency_line(latency: dict[str, Any]) -> str:
    images = "one image" if latency["batch_size"] == 1 else f"{latency['batch_size']} images"
    return (
        f"latency {latency['p50_ms']:.2f} ms for {images} (median of {latency['runs']}; "
        f"{latency['device_name']}, {latency['threads']} threads, {latency['precision']}, "
        f"{latency['memory_format']}, {latency['runtime']})"
    )


@contextmanager
def _logging_to(path: Path, *, enabled: bool) -> Iterator[None]:
    """Log plain lines to the terminal and, with the time, to a file; nothing unless ``enabled``."""
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if enabled:
        handlers = [logging.StreamHandler(sys.stdout), logging.FileHandler(path)]
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for handler in handlers:
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
