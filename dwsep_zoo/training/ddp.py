"""Several processes, one network."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.pytorch.strategies import DDPStrategy

from dwsep_zoo.errors import UserError

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

    def on_exception(self, exception: BaseException) -> None:
        """Name the process whose end made the others fail, if that is what happened.

        Raises:
            UserError: in place of what their connections said.
        """
        super().on_exception(exception)
        processes = getattr(self.launcher, "procs", [])
        if not processes or not isinstance(exception, RuntimeError):
            return
        deadline = time.monotonic() + WAIT_FOR_END
        while not (codes := {rank: p.poll() for rank, p in enumerate(processes, 1) if p.poll()}):
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        for process in processes:
            process.kill()
        processes.clear()  # else Lightning's observer kills this process as well
        rank, code = next(iter(codes.items()))
        names = {number.value: number.name for number in signal.Signals}
        how = f"was killed by {names.get(-code, -code)}" if code < 0 else f"ended with code {code}"
        raise UserError(
            f"the process of rank {rank} {how}; go on from the last checkpoint with "
            f"resume={self.folder}"
        ) from exception

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


def is_first_process() -> bool:
    """Whether this process writes the run's files; the others have the same command line."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0
