"""Trackers of experiments beside TensorBoard: MLflow, Weights & Biases, Trackio.

A tracker is a service of somebody else. It gets what TensorBoard gets, the settings, the final
measures and the pictures; whatever goes wrong there is a warning, and the training goes on.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from dwsep_zoo.errors import UserError, first_line, install_line
from dwsep_zoo.files import atomic_write
from dwsep_zoo.schema.measures import hparams_metrics
from dwsep_zoo.schema.record import RunRecord
from dwsep_zoo.schema.settings import LoggerSettings, Settings

if TYPE_CHECKING:
    pass

log = logging.getLogger("dwsep_zoo")

ID_FILE = "tracker.json"
PAUSE = 60.0
"""Seconds after a failure in which a tracker is left alone."""

PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Environment, unless it is set: MLflow waits for minutes for a server that is down."""


def check_tracker(settings: LoggerSettings) -> None:
    """Raises UserError if the package of the tracker is not installed."""
    name = settings.tracker
    if name is not None and find_spec(name) is None:
        raise UserError(f"logger={name} needs the package {name}: {install_line(name)}")


class Tracker(Logger):
    """One of Lightning's loggers, opened late and kept from ending the training.

    A tracker that cannot be reached when the training begins is left out. One that fails later is
    left alone for a minute, and what would have been told meanwhile is lost there.

    Args:
        settings: those of the run.
        folder: the run's; ``tracker.json`` in it has the tracker's own name of the run, so that a
            resumed run goes on there.
    """

    def __init__(self, settings: Settings, folder: Path):
        super().__init__()
        self.settings, self.folder = settings, folder
        self.logger: Logger | None = None
        self.quiet_until = 0.0
        self.warned = False

    @property
    def name(self) -> str | None:
        return self.settings.logger.tracker

    @property
    def version(self) -> str | None:
        return None

    @rank_zero_only
    def begin(self) -> None:
        """Open the tracker's run: a new one or, of a run that is resumed, ``tracker.json``'s."""
        assert self.name is not None
        for key, value in PATIENCE.items():
            os.environ.setdefault(key, value)
        known = _known(self.folder, self.name) if self.settings.resume else None

        def begin() -> None:
            logger, number = OPEN[str(self.name)](self.settings, self.folder, known)
            if number != known:
                logger.log_hyperparams(self.settings.plain())
            text = json.dumps({"tracker": self.name, "run": number})
            atomic_write(self.folder / ID_FILE, text)
            self.logger = logger

        self._try(begin)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the tracker has the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if logger := self.logger:
            self._try(lambda: logger.log_metrics(dict(metrics), step))

    def save(self) -> None:
        """Nothing: trackers save by themselves."""

    def finalize(self, status: str) -> None:
        """Nothing: Lightning calls this after the training, before the test."""

    @rank_zero_only
    def log_end(self, record: RunRecord, step: int) -> None:
        """The final measures and the pictures of a run."""
        known = {k: v for k, v in hparams_metrics(record).items() if v is not None}
        self.log_metrics(known, step)
        for file in sorted(self.folder.glob("*.png")):
            self._try(lambda file=file: _log_picture(self.logger, file))  # type: ignore[misc]

    @rank_zero_only
    def close(self, status: str) -> None:
        if logger := self.logger:
            self.quiet_until = 0.0
            self._try(lambda: _close(logger, status))

    def _try(self, action: Callable[[], None]) -> None:
        if time.monotonic() < self.quiet_until:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of libraries about themselves
                action()
        except Exception as error:  # of many kinds, none of which is worth a training
            self.quiet_until = time.monotonic() + PAUSE
            if not self.warned:
                lost = "some of this run" if self.logger else "this run"
                log.warning("%s failed: %s", self.name, first_line(error))
                log.warning("the training goes on; %s will be missing there", lost)
            self.warned = True


@contextmanager
def tracked(trainer: L.Trainer) -> Iterator[Tracker | None]:
    """The tracker of a Trainer, if it has one, from the beginning of a run to its end."""
    tracker = next((one for one in trainer.loggers if isinstance(one, Tracker)), None)
    if tracker is None:
        yield None
        return
    tracker.begin()
    try:
        yield tracker
    except BaseException:
        tracker.close("failed")
        raise
    tracker.close("success")


def _known(folder: Path, tracker: str) -> str | None:
    """The tracker's own name of a run that is resumed."""
    try:
        found = json.loads((folder / ID_FILE).read_text(encoding="utf-8"))
        return str(found["run"]) if found["tracker"] == tracker else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _project(settings: Settings) -> str:
    return settings.logger.project or settings.task_name


def _mlflow(settings: Settings, folder: Path, known: str | None) -> tuple[Logger, str]:
    import mlflow
    from lightning.pytorch.loggers import MLFlowLogger

    given = settings.logger.uri or os.environ.get("MLFLOW_TRACKING_URI")
    logs = Path(settings.paths.log_dir).resolve()
    logs.mkdir(parents=True, exist_ok=True)
    logging.getLogger(mlflow.__name__).setLevel(logging.WARNING)  # it tells of every table
    logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)
    logger = MLFlowLogger(
        _project(settings),
        run_name=folder.name,
        tracking_uri=given or f"sqlite:///{logs / 'mlflow.db'}",
        artifact_location=None if given else (logs / "mlflow").as_uri(),
        run_id=known,
    )
    number = str(logger.run_id)
    if known:
        logger.experiment.update_run(number, status="RUNNING")
    return logger, number


def _wandb(settings: Settings, folder: Path, known: str | None) -> tuple[Logger, str]:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    options = wandb.Settings(silent=True, init_timeout=30)
    if settings.logger.uri:
        options.base_url = settings.logger.uri
    own = wandb.init(
        project=_project(settings),
        name=folder.name,
        id=known,
        resume="allow",
        dir=str(folder),
        settings=options,
    )
    for key, axis in (("trainer/global_step", None), ("*", "trainer/global_step")):
        own.define_metric(key, step_metric=axis)
    return WandbLogger(experiment=own), str(own.id)


def _trackio(settings: Settings, folder: Path, known: str | None) -> tuple[Logger, str]:
    name = known or f"{folder.parent.name}-{folder.name}"  # its own name of a run
    resume = "allow" if known else "never"
    logger = TrackioLogger(_project(settings), name, settings.logger.uri, resume)
    return logger, str(logger.run.name)  # another one if there is a run of that name


OPEN: dict[str, Callable[[Settings, Path, str | None], tuple[Logger, str]]] = {
    "mlflow": _mlflow,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""How a tracker's run is opened, with its own name if it is known, which is returned."""


class TrackioLogger(Logger):
    """Trackio, which Lightning has no logger for."""

    def __init__(self, project: str, name: str, server: str | None, resume: str):
        super().__init__()
        import trackio

        self.run = trackio.init(project, name, server_url=server, resume=resume, embed=False)

    @property
    def name(self) -> str | None:
        return "trackio"

    @property
    def version(self) -> str | None:
        return None

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.run.config.update(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.run.log(dict(metrics), step=step)


def _log_picture(logger: Logger | None, file: Path) -> None:
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    if isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(str(logger.run_id), str(file))
    elif isinstance(logger, WandbLogger):
        logger.log_image(file.stem, [str(file)])
    elif isinstance(logger, TrackioLogger):
        import trackio

        logger.run.log({file.stem: trackio.Image(str(file))})


def _close(logger: Logger, status: str) -> None:
    from lightning.pytorch.loggers import WandbLogger

    if isinstance(logger, WandbLogger):  # which Lightning leaves open, for the next run to find
        logger.experiment.finish(exit_code=status != "success")
    elif isinstance(logger, TrackioLogger):
        logger.run.finish()
    else:
        logger.finalize(status)
