"""Checkpoints: written as a whole, checked when they are read, the one before the last kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dwsep_zoo.errors import UserError
from dwsep_zoo.files import checksum_of, part_of, sync_folder, write_part
from dwsep_zoo.weights.files import read_checkpoint

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_FORM = {
    **{"epoch": 0, "global_step": 0, "pytorch-lightning_version": "", "state_dict": {}},
    "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 0}}}},
    "callbacks": {},
    "optimizer_states": [{"state": {}, "param_groups": [{"params": [0]}]}],
    "lr_schedulers": [{"last_epoch": 0, "base_lrs": []}],
    "dwsep_zoo": {"model": {"name": ""}, "class_names": [], "preprocessing": {}},
}
"""What a checkpoint holds at least, with values of the right types."""
_WORDS: dict[Any, str] = {
    dict: "a group of keys",
    list: "a list",
    str: "text",
    (bool, int, float): "a number",
}
"""Types that are checked; others, such as a score's, come with the first epoch."""


class CheckpointStore(CheckpointIO):
    """Writes and reads the checkpoints of a Trainer.

    Lightning's own writes into the temporary folder and copies that over the checkpoint, which is
    lost if the process is killed or the disk fills up while it copies.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        for file in (Path(path), checksum_of(Path(path))):
            file.unlink(missing_ok=True)


def save_checkpoint(values: Mapping[str, Any], path: Path) -> None:
    """Replace a checkpoint and its checksum; ``last.ckpt`` becomes ``previous.ckpt`` then.

    Whenever the process is killed, a complete checkpoint is there under one of the two names. In
    between a checkpoint may have no checksum, but never a wrong one.

    Raises:
        OSError: which names ``path``; what was there is untouched then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum = checksum_of(path)
    digest = write_part(path, partial(torch.save, dict(values)))
    try:
        write_part(checksum, lambda file: file.write(f"{digest}\n".encode()))
        if path.name == LAST and path.is_file():
            previous = path.with_name(PREVIOUS)
            checksum_of(previous).unlink(missing_ok=True)
            os.replace(path, previous)
            with suppress(FileNotFoundError):
                os.replace(checksum, checksum_of(previous))
        checksum.unlink(missing_ok=True)
        os.replace(part_of(path), path)
        os.replace(part_of(checksum), checksum)
    finally:
        for file in (path, checksum):
            part_of(file).unlink(missing_ok=True)
    sync_folder(path.parent)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that a training can go on from.

    Raises:
        UserError: in one line, if it is damaged, of another program or of another version.
    """
    saved = read_checkpoint(path)
    if fault := _fault(_FORM, saved):
        raise UserError(f"{path}: not a checkpoint of dwsep_zoo: {fault}")
    odd = [name for name, value in saved["state_dict"].items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(f"{path}: not a checkpoint of dwsep_zoo: state_dict.{odd[0]} is no tensor")
    theirs, ours = saved["pytorch-lightning_version"], L.__version__
    if theirs.split(".")[0] != ours.split(".")[0]:
        raise UserError(f"{path}: written by Lightning {theirs}, which {ours} cannot go on from")
    return saved


def load_last(folder: Path) -> tuple[Path, dict[str, Any], str | None]:
    """The newest checkpoint in a folder that is whole.

    Returns:
        Its path, its content, and a warning if it is not ``last.ckpt``.

    Raises:
        UserError: if there is none.
    """
    problems = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            problems.append(f"there is no checkpoint {path}")
            continue
        try:
            saved = load_checkpoint(path)
        except UserError as error:
            problems.append(str(error))
            continue
        return path, saved, f"{problems[0]}; going on from {path}" if problems else None
    if not (folder / PREVIOUS).exists():
        problems.pop()
    raise UserError("; ".join(problems))


def has_checkpoint(folder: Path) -> bool:
    """Whether the folder of a run has a checkpoint to go on from, damaged or not."""
    return any((folder / "checkpoints" / name).exists() for name in (LAST, PREVIOUS))


def set_damaged_aside(folder: Path) -> None:
    """Rename a damaged ``last.ckpt``; the next save would put it in place of ``previous.ckpt``."""
    last = folder / LAST
    with suppress(FileNotFoundError):
        last.replace(last.with_name(f"{LAST}.damaged"))
    checksum_of(last).unlink(missing_ok=True)


def check_fits(saved: Mapping[str, Any], trainer: L.Trainer, path: Path) -> None:
    """Raises UserError if Lightning could not read the states of loops and callbacks.

    Args:
        saved: the checkpoint.
        trainer: with the callbacks that will go on.
        path: where the checkpoint was read.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    own = {callback.state_key: callback.state_dict() for callback in callbacks}
    form = {
        "loops": {"fit_loop": trainer.fit_loop.state_dict()},
        # Others have not been there: they begin anew.
        "callbacks": {key: state for key, state in own.items() if key in saved["callbacks"]},
    }
    if fault := _fault(form, saved):
        raise UserError(f"{path}: not a checkpoint of dwsep_zoo: {fault}")


def _fault(form: object, value: object, where: str = "it") -> str | None:
    """The first difference in form: a key that is missing, or a value of another type."""
    kind, word = next((item for item in _WORDS.items() if isinstance(form, item[0])), (object, ""))
    if not isinstance(value, kind):
        return f"{where} must be {word}; got {type(value).__name__}"
    prefix = "" if where == "it" else f"{where}."
    if isinstance(form, dict) and isinstance(value, dict):
        for key, part in form.items():
            if key not in value:
                return f"{prefix}{key} is missing"
            if fault := _fault(part, value[key], f"{prefix}{key}"):
                return fault
    if form and isinstance(form, list) and isinstance(value, list):
        if not value:
            return f"{where} is empty"
        faults = (_fault(form[0], part, f"{prefix}{n}") for n, part in enumerate(value))
        return next(filter(None, faults), None)
    return None
