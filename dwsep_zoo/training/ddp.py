"""Several processes, one network."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from dwsep_zoo.errors import UserError, say
from dwsep_zoo.nn.synced import separate, synchronise
from dwsep_zoo.schema.record import FILE_NAME, now, update_record
from dwsep_zoo.training.checkpoints import has_checkpoint

WAIT_FOR_END = 2.0
"""Seconds for a process to be gone after its connections are."""


class DataParallel(DDPStrategy):
    """Lightning's DDP, whose processes may evaluate different numbers of batches.

    Each image is evaluated once, so that a process can have a batch more than another. PyTorch's
    wrapper would wait at every batch to copy the running statistics of the first process to all;
    here evaluation does without the wrapper, and they are copied when it begins.

    Args:
        folder: the run's, for messages.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def setup_environment(self) -> None:
        super().setup_environment()
        for thread in threading.enumerate():
            if thread.name == "child-process-observer":
                # Lightning's kills this process without a word, which may wait for ever for others.
                thread._terminate_all = self._end  # type: ignore[attr-defined]

    def on_exception(self, exception: BaseException) -> None:
        """Name the process whose end made the others fail, if that is what happened.

        Raises:
            UserError: in place of what their connections said.
        """
        super().on_exception(exception)
        others = getattr(self.launcher, "procs", [])
        deadline = time.monotonic() + (WAIT_FOR_END if others else 0)
        while isinstance(exception, RuntimeError) and time.monotonic() < deadline:
            if lost := self._lost():
                raise lost from exception
            time.sleep(0.05)

    def _lost(self) -> UserError | None:
        """The process that ended, with whose end the others are ended."""
        processes = getattr(self.launcher, "procs", [])
        codes = {rank: process.poll() for rank, process in enumerate(processes, 1)}
        ended = next(((rank, code) for rank, code in codes.items() if code), None)
        if ended is None:
            return None
        for process in processes:
            process.kill()
        processes.clear()  # the observer has nothing left to do
        rank, code = ended
        names = {number.value: number.name for number in signal.Signals}
        how = f"was killed by {names.get(-code, -code)}" if code < 0 else f"ended with code {code}"
        if has_checkpoint(self.folder):
            how += f"; go on from the last checkpoint with resume={self.folder}"
        return UserError(f"the process of rank {rank} {how}")

    def _end(self) -> None:
        """End this process from the observer's thread, while the main thread is at work."""
        if lost := self._lost():
            with suppress(OSError, UserError):
                update_record(
                    self.folder / FILE_NAME, status="failed", error=str(lost), finished=now()
                )
            say(lost)
            os._exit(2)

    def on_validation_start(self) -> None:
        self._share_buffers()

    def on_test_start(self) -> None:
        self._share_buffers()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        with self.precision_plugin.test_step_context():
            return self.lightning_module.test_step(*args, **kwargs)

    def _share_buffers(self) -> None:
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            torch.distributed.broadcast(buffer, 0)


class SyncedNorms(LayerSync):
    """Statistics of norms over all processes while a network trains; Lightning's needs GPUs."""

    def apply(self, model: nn.Module) -> nn.Module:
        if torch.distributed.get_world_size() > 1:
            synchronise(model.modules())
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        separate(model.modules())
        return model


def is_first_process() -> bool:
    """Whether this process writes the run's files; the others have the same command line.

    ``torchrun`` counts processes by ``RANK``. Lightning numbers those that it starts within a node
    by ``LOCAL_RANK``, nodes by ``NODE_RANK``, and ``srun`` its own by ``SLURM_PROCID``.
    """
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    names = ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return not any(int(os.environ.get(name) or 0) for name in names)


def is_one_of_several() -> bool:
    """Whether ``torchrun`` or ``srun`` has started others like this process."""
    names = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    return not is_first_process() or any(int(os.environ.get(name) or 1) > 1 for name in names)
