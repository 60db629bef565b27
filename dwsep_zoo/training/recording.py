"""The log and the record of a run, also if it fails or is stopped."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from dwsep_zoo.errors import UserError
from dwsep_zoo.files import locked
from dwsep_zoo.schema.process import this_process
from dwsep_zoo.schema.record import RecordFile, now
from dwsep_zoo.signals import ending
from dwsep_zoo.training.callbacks import Interrupted
from dwsep_zoo.training.check import LOG_NAME, Plan, check_unchanged
from dwsep_zoo.training.checkpoints import has_checkpoint
from dwsep_zoo.training.ddp import is_first_process
from dwsep_zoo.training.provenance import provenance
from dwsep_zoo.training.say import TerminalLines
from dwsep_zoo.training.snapshot import Snapshot

log = logging.getLogger("dwsep_zoo")

KEPT = ("match", "data", "search", "teacher")
"""Keys of a record that a run reads when it goes on, kept until they are found anew."""


@contextmanager
def recording(plan: Plan) -> Iterator[RecordFile]:
    """Make the run's folder, log into it, and record how the run ends.

    Wrong input that shows before the first step leaves no run. A run that goes on is left as it was
    by whatever ends it before the first new step.

    Raises:
        UserError: for input that cannot work, and for a disk that is full or gone.
        SystemExit: with code 130 if the user stopped the training; its state is saved.
    """
    folder, first = plan.folder, is_first_process()
    try:
        with _claimed(plan) if first else nullcontext() as before, ending():
            record = None
            try:
                with _logging_to(folder / LOG_NAME, enabled=first):
                    if plan.start and plan.start.warning:
                        log.warning("%s", plan.start.warning)
                    record = _begin(plan, enabled=first)
                    with _recording_the_end(record, folder):
                        yield record
            except BaseException as error:
                begun = record is not None and record.begun
                wrong = isinstance(error, UserError | OSError)
                if before and not begun and (wrong or plan.earlier):
                    with suppress(OSError):
                        before.restore()
                raise
    except OSError as error:
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}") from error


@contextmanager
def _claimed(plan: Plan) -> Iterator[Snapshot]:
    """Lock the folder and keep what it holds.

    Raises:
        UserError: if another process is at work in it, or was since it was checked.
    """
    folder = plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    before = Snapshot(folder)
    with locked(folder / LOG_NAME) as mine:
        if not mine:
            raise UserError(f"{folder}: another process is at work in this folder")
        check_unchanged(plan)
        for part in [*folder.glob("*.part"), *folder.glob("checkpoints/*.part")]:
            part.unlink(missing_ok=True)  # of processes that were killed
        yield before


def _begin(plan: Plan, *, enabled: bool) -> RecordFile:
    settings, folder = plan.settings, plan.folder
    earlier = plan.earlier.plain() if plan.earlier else {}
    return RecordFile(
        folder,
        enabled=enabled,
        name=folder.name,
        model=settings.model.name,
        conv=settings.conv.name,
        conv_options={k: v for k, v in settings.conv.plain().items() if k != "name"},
        width_mult=settings.model.width_mult,
        seed=settings.seed,
        tags=list(settings.tags),
        config=settings.plain(),
        started=now(),
        process=this_process(),
        **{key: earlier[key] for key in KEPT if key in earlier},
        **provenance(),
    )


@contextmanager
def _recording_the_end(record: RecordFile, folder: Path) -> Iterator[None]:
    try:
        yield
    except Interrupted as stop:
        record.update(status="interrupted", error=str(stop), finished=now())
        log.info("%s; saved checkpoints/last.ckpt. Go on with: resume=%s", stop, folder)
        sys.exit(130)
    except (KeyboardInterrupt, SystemExit):  # Lightning exits when it is interrupted
        if record.record.status == "finished":  # only pictures were still to be drawn
            log.info("stopped; dwsep inspect %s draws the pictures that are missing", folder)
            sys.exit(130)
        record.update(status="interrupted", error="stopped at once", finished=now())
        log.info("stopped at once; %s", _what_is_saved(folder))
        sys.exit(130)
    except Exception as error:
        _record_failure(record, folder, error)


def _what_is_saved(folder: Path) -> str:
    if has_checkpoint(folder):
        return f"go on from the last checkpoint with resume={folder}"
    return "nothing was saved yet"


def _record_failure(record: RecordFile, folder: Path, error: Exception) -> None:
    """Record an error and raise it, as a UserError where the user can do something about it."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError):  # a full or vanished disk
        message = f"{error.strerror or error}: {error.filename or folder}; {_what_is_saved(folder)}"
    with suppress(OSError):
        record.update(status="failed", error=message, finished=now())
    if isinstance(error, OSError | MisconfigurationException):
        raise UserError(message) from error
    if not isinstance(error, UserError):
        log.exception("the run failed")
    raise error


@contextmanager
def _logging_to(path: Path, *, enabled: bool) -> Iterator[None]:
    """Log plain lines to the terminal and, with the time, to a file; nothing unless ``enabled``."""
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if enabled:
        handlers = [TerminalLines(), logging.FileHandler(path, errors="backslashreplace")]
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for handler in handlers:
        log.addHandler(handler)
    before = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.level, log.propagate = before
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
