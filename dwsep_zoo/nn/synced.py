"""Batch norms whose statistics in training are those of all processes, on every device.

``torch.nn.SyncBatchNorm`` refuses tensors on the CPU, and everywhere a norm that does not count its
batches, as precise statistics and gradient checkpointing need it. A norm is converted by its class
alone: its parameters, statistics, hooks and place in the network stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as OnGPU  # not public
from torch.nn.modules.batchnorm import _BatchNorm

from dwsep_zoo.ops import ranks


class _Synced(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and ranks.several()):
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        weights, tracked = (self.weight, self.bias), self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if tracked else (None, None)
        share = self._count() if tracked else 0.0
        if input.is_cuda:
            group, size = dist.group.WORLD, dist.get_world_size()
            return OnGPU.apply(input, *weights, mean, var, self.eps, share, group, size)
        y, own_mean, own_var, count = ranks.normalise(input, *weights, self.eps)
        if mean is not None and var is not None:
            mean.lerp_(own_mean.to(mean.dtype), share)
            var.lerp_((own_var * (count / (count - 1))).to(var.dtype), share)
        return y

    def _count(self) -> float:
        """Count this batch, and return its weight in the running statistics."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1 / float(self.num_batches_tracked)
        return self.momentum or 0.0


class SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    """``nn.BatchNorm1d``, in training with the statistics of all ranks."""


class SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    """``nn.BatchNorm2d``, in training with the statistics of all ranks."""


_SYNCED: dict[type, type] = {
    nn.BatchNorm1d: SyncedBatchNorm1d,
    nn.BatchNorm2d: SyncedBatchNorm2d,
}
_ALONE = {synced: alone for alone, synced in _SYNCED.items()}


def synchronise(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Let the batch norms among these modules take their statistics over all ranks.

    Returns:
        Those that did not before.
    """
    return _convert(modules, _SYNCED)


def separate(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Undo :func:`synchronise`; returns those that were synchronised."""
    return _convert(modules, _ALONE)


@contextmanager
def separated(modules: Iterable[nn.Module]) -> Iterator[None]:
    """For a while each rank's norms among these modules have its own statistics."""
    before = separate(modules)
    try:
        yield
    finally:
        synchronise(before)


def is_synced(norm: nn.Module) -> bool:
    """Whether the statistics of a norm in training are those of all ranks."""
    return isinstance(norm, _Synced)


def _convert(modules: Iterable[nn.Module], kinds: dict[type, type]) -> list[nn.Module]:
    found = [module for module in modules if type(module) in kinds]
    for module in found:
        module.__class__ = kinds[type(module)]
    return found
