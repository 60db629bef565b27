"""Checks before a run writes anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import lightning as L

from dwsep_zoo.analysis.runtimes import Workload
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.files import check_writable, is_locked, is_sweep
from dwsep_zoo.nn import CONVS
from dwsep_zoo.schema.parse import key_names, unknown_key
from dwsep_zoo.schema.record import FILE_NAME, RunRecord, read_record
from dwsep_zoo.schema.settings import Settings, parse_settings
from dwsep_zoo.training.callbacks import EpochTable
from dwsep_zoo.training.checkpoints import (
    check_fits,
    has_checkpoint,
    load_checkpoint,
    load_last,
)
from dwsep_zoo.training.ddp import is_first_process, is_one_of_several
from dwsep_zoo.training.optim import check_optimizer
from dwsep_zoo.training.prepare import check_network_and_data
from dwsep_zoo.training.search import check_optuna
from dwsep_zoo.training.teacher import check_teacher
from dwsep_zoo.training.trackers import check_tracker
from dwsep_zoo.training.trainer import create_trainer

MAY_CHANGE = (
    *("trainer.max_epochs", "trainer.accelerator", "trainer.devices", "trainer.profiler"),
    *("trainer.enable_progress_bar", "trainer.max_time", "trainer.compile"),
    *("data.root", "data.url", "data.csv", "data.hf", "data.num_workers", "data.cache"),
    *("paths", "callbacks", "profile", "logger"),
    *("tags", "test", "resume", "ckpt_path", "distill.teacher"),
)
"""Keys and groups that a resumed run may set anew: places, words, devices, and how long."""

APPLIED = {
    *("epochs", "warmup_fraction", "schedule", "min_lr", "label_smoothing", "norm_statistics"),
    *("decay_rate", "decay_epochs", "staircase", "model_ema_warmup"),
    *("mixup", "cutmix", "class_weights", "initial_size", "full_size_from"),
    *("eval_flip", "eval_shift"),
}
"""Values of the recipe that a training which goes on with ``ckpt_path=`` may have anew."""

LOG_NAME = "train.log"


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from.

    Attributes:
        step: optimizer steps behind it.
        epochs: finished epochs.
        network: arguments of ``create_model`` for its network.
        class_names: of its outputs.
        warning: why it is not the last one.
    """

    path: Path
    step: int
    epochs: int
    network: Mapping[str, object]
    class_names: tuple[str, ...]
    warning: str | None = None


@dataclass(frozen=True)
class Plan:
    """A run that has passed all checks that need no data.

    Attributes:
        earlier: the record of the run that is resumed.
        start: the checkpoint to go on from.
    """

    settings: Settings
    folder: Path
    earlier: RunRecord | None
    start: Start | None


def check(settings: Settings) -> Plan:
    """Check names, values, places and checkpoints; write nothing and download nothing.

    Raises:
        UserError: in one line, naming the value.
    """
    folder = Path(settings.paths.output_dir)
    check_writable("paths.output_dir", folder)
    check_optimizer(settings.recipe)
    _check_simulated(settings)
    check_tracker(settings.logger)
    check_teacher(settings)
    if settings.hparams_search:
        check_optuna()
    if is_sweep(folder.parent):
        check_in_sweep(settings)
    if settings.data.batch_size == "auto" and settings.trainer.strategy == "ddp":
        raise UserError("data.batch_size=auto cannot run with trainer=ddp; name a number")
    choose(settings.to, CONVS, "to")
    profile = settings.profile
    for runtime, precision, batch_size in product(
        profile.runtimes, profile.precisions, profile.batch_sizes
    ):
        Workload(runtime, precision, batch_size).check()
    # Lightning checks its options.
    trainer = create_trainer(settings, folder, [EpochTable(folder / "metrics.csv")])
    _check_processes(settings, trainer)
    check_network_and_data(settings)
    if is_first_process():
        _check_free(settings, folder)
    earlier = _check_resume(settings) if settings.resume else None
    start = _read_start(settings, trainer)
    return Plan(settings, folder, earlier, start)


def check_in_sweep(settings: Settings) -> None:
    """Raises UserError for settings that no run of a sweep can have."""
    if settings.data.batch_size == "auto":
        raise UserError(
            "data.batch_size=auto would give the runs of a sweep steps of different sizes; name a "
            "number with -m"
        )
    if settings.trainer.strategy == "ddp":
        raise UserError("trainer=ddp starts processes of its own and cannot run inside -m")


def _check_simulated(settings: Settings) -> None:
    scheme = settings.recipe.simulated_int8
    if not scheme:
        return
    if settings.train and not (settings.model.pretrained or settings.ckpt_path or settings.resume):
        raise UserError(
            f"recipe.simulated_int8={scheme} goes on from a trained network, as norms keep their "
            "statistics; set model.pretrained to a run, a checkpoint or published weights"
        )
    if settings.trainer.compile is True:
        raise UserError(
            f"trainer.compile=true: steps with recipe.simulated_int8={scheme} are not compiled"
        )


def _check_processes(settings: Settings, trainer: L.Trainer) -> None:
    """Raises UserError for several processes that would not know of each other."""
    if settings.trainer.strategy == "ddp":
        return
    if trainer.world_size > 1:  # devices=auto
        raise UserError(f"{trainer.world_size} processes, a device each, need trainer=ddp")
    if is_one_of_several():
        raise UserError("this is one of several processes, which need trainer=ddp")


def _check_free(settings: Settings, folder: Path) -> None:
    """Raises UserError if a folder is in use, or holds a run that would be overwritten."""
    if is_locked(folder / LOG_NAME):
        raise UserError(f"{folder}: another process is at work in this folder")
    if not settings.resume:
        _check_unused(folder)


def _check_unused(folder: Path) -> None:
    file = folder / FILE_NAME
    if not file.is_file():
        return
    try:
        status = read_record(file).status
    except (OSError, UserError):
        status = "damaged"
    if has_checkpoint(folder) or status in ("finished", "damaged"):  # all else is no loss
        raise UserError(
            f"{folder} holds a run, which is {status}; resume={folder} goes on with it, another "
            "run needs another folder"
        )


def check_unchanged(plan: Plan) -> None:
    """Raises UserError if another process has worked in the folder since it was checked."""
    if plan.earlier is None:
        _check_unused(plan.folder)
        return
    found = _recorded(plan.folder)
    if (found.status, found.process) != (plan.earlier.status, plan.earlier.process):
        raise UserError(f"{plan.folder}: another process has worked in this folder meanwhile")


def resume_settings(run: Path, changes: Mapping[str, object] | None = None) -> Settings:
    """The recorded settings of a run, to go on with it.

    Args:
        run: its folder.
        changes: other values by dotted key, for keys of :data:`MAY_CHANGE`.

    Raises:
        UserError: for a folder without a record, or an unknown key; :func:`check` refuses a change
            that would make another run.
    """
    recorded = _recorded_settings(run)
    config = recorded.plain()
    for key, value in {
        **(changes or {}),
        "paths.output_dir": str(run),
        "resume": str(run),
        "ckpt_path": None,
    }.items():
        config = _with(config, key, value)
    return _with_its_batch_size(parse_settings(config), recorded)


def _with_its_batch_size(settings: Settings, recorded: Settings) -> Settings:
    """Settings in which ``data.batch_size=auto`` is the number that was chosen for a run."""
    if settings.data.batch_size != "auto":
        return settings
    batch_size = recorded.data.batch_size
    return settings.replace(data={**settings.data.plain(), "batch_size": batch_size})


def continued(settings: Settings) -> Settings | None:
    """The settings with which the run in ``paths.output_dir`` begins, or goes on if it was cut off.

    Returns:
        ``None`` if it is finished.

    Raises:
        UserError: if the folder holds another run.
    """
    folder = Path(settings.paths.output_dir)
    if not (folder / FILE_NAME).is_file():
        return settings
    earlier, again = _recorded(folder), settings.replace(resume=str(folder))
    again = _with_its_batch_size(again, _recorded_settings(folder))
    if earlier.search:
        again = again.replace(recipe={**again.recipe.plain(), **earlier.search.best})
    _check_same(again)
    length = earlier.configured("trainer.max_epochs")
    if earlier.status == "finished" and length == settings.trainer.max_epochs:
        return None
    # Decided by what is saved: of several processes the first may have begun a record by now.
    return again if has_checkpoint(folder) else settings


def _with(config: dict[str, object], key: str, value: object, group: str = "") -> dict[str, object]:
    first, _, rest = key.partition(".")
    if first not in config:
        raise unknown_key(f"{group}{first}", [*key_names(Settings)])
    if rest:
        inner = config[first]
        if not isinstance(inner, dict):
            raise UserError(f"unknown key '{group}{key}': {group}{first} has no parts")
        value = _with(inner, rest, value, f"{group}{first}.")
    return {**config, first: value}


def _recorded(run: Path) -> RunRecord:
    file = run / FILE_NAME
    if not file.is_file():
        raise UserError(f"resume={run}: not the folder of a run (it has no {FILE_NAME})")
    try:
        return read_record(file)
    except (OSError, UserError) as error:
        raise UserError(f"resume={run}: cannot read {file}: {error}") from error


def _recorded_settings(run: Path) -> Settings:
    record = _recorded(run)
    try:
        return parse_settings(record.config)
    except UserError as error:
        raise UserError(f"resume={run}: its settings cannot be read: {error}") from error


def _check_resume(settings: Settings) -> RunRecord:
    """The record of the run that is resumed, before anything of it is overwritten."""
    run = Path(str(settings.resume))
    earlier = _recorded(run)
    done = earlier.epochs or 0
    if earlier.status == "finished" and done >= settings.trainer.max_epochs:
        raise UserError(
            f"resume={run}: this run is finished; to train it further than its {done} epochs, set "
            "trainer.max_epochs"
        )
    _check_same(settings)
    return earlier


def _check_same(settings: Settings) -> None:
    """Raises UserError for settings that would make another run of the one that is resumed."""
    run = Path(str(settings.resume))
    before = _recorded_settings(run).plain()
    for key, old, new in _differences(before, settings.plain()):
        if key == "data.cache" and bool(old) != bool(new):
            raise UserError(
                f"resume={run} cannot change data.cache from {old!r} to {new!r}: pictures from "
                "files and from a cache are augmented otherwise"
            )
        if key == "distill.teacher" and not (old and new):
            raise UserError(
                f"resume={run} cannot change {key} from {old!r} to {new!r}: it names the place of "
                f"the teacher with which the run began"
                if old
                else f"resume={run} cannot change {key} to {new!r}: the run began without a teacher"
            )
        if not any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE):
            raise UserError(
                f"resume={run} cannot change {key} from {old!r} to {new!r}; it may change: "
                f"{', '.join(MAY_CHANGE)}"
            )


def _differences(old: object, new: object, key: str = "") -> Iterator[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            path = f"{key}.{name}" if key else name
            yield from _differences(old.get(name), new.get(name), path)
    elif old != new:
        yield key, old, new


def _check_recipe(saved: object, settings: Settings) -> None:
    """Raises UserError for values that ``ckpt_path=`` would set back to those of the checkpoint."""
    for key, new in settings.recipe.plain().items():
        old = saved.get(key, new) if isinstance(saved, dict) else new
        if old != new and key not in APPLIED:
            raise UserError(
                f"ckpt_path={settings.ckpt_path} goes on with its optimizer, whose recipe.{key} is "
                f"{old!r}, not {new!r}; to train its weights otherwise, set model.pretrained to it"
            )


def _read_start(settings: Settings, trainer: L.Trainer) -> Start | None:
    """``resume=`` names a run, ``ckpt_path=`` a file."""
    key, given = (
        ("resume", settings.resume) if settings.resume else ("ckpt_path", settings.ckpt_path)
    )
    if not given:
        return None
    warning = None
    try:
        if settings.resume:
            path, saved, warning = load_last(Path(given) / "checkpoints")
        elif Path(given).is_file():
            path, saved = Path(given), load_checkpoint(Path(given))
        else:
            raise UserError(f"there is no checkpoint {given}")
        check_fits(saved, trainer, path)
    except UserError as error:
        raise UserError(f"{key}={given}: {error}") from error
    if settings.ckpt_path and not settings.resume:
        _check_recipe(saved["dwsep_zoo"].get("recipe"), settings)
    epochs = saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    about = saved["dwsep_zoo"]
    names = tuple(about["class_names"])
    start = Start(path, saved["global_step"], epochs, about["model"], names, warning)
    if settings.ckpt_path and settings.train and start.epochs >= settings.trainer.max_epochs:
        raise UserError(
            f"ckpt_path={given} has all of its {start.epochs} epochs behind it; to train it "
            "further, set trainer.max_epochs"
        )
    return start
