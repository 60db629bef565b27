"""Several processes, one network."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed
from lightning.pytorch.strategies import DDPStrategy


class DataParallel(DDPStrategy):
    """Lightning's DDP, whose processes may evaluate different numbers of batches.

    Each image is evaluated once, so that a process can have a batch more than another. PyTorch's
    wrapper would wait at every batch to copy the running statistics of the first process to all;
    here evaluation does without the wrapper, and they are copied when it begins.
    """

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
