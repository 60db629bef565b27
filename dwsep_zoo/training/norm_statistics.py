"""Precise statistics of batch norms: those of the weights that are evaluated.

Running statistics average over training steps, each with other weights. After few steps, or at a
high rate, they lag so far behind that a trained network looks untrained, and some conv types suffer
more than others. ``recipe.norm_statistics=precise`` computes them anew before every evaluation:
mean and variance over training pictures, pooled over batches (Wu and Johnson, "Rethinking 'Batch'
in BatchNorm", arXiv:2105.07576, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dwsep_zoo.data import ImageData
from dwsep_zoo.data.loader import RawBatch
from dwsep_zoo.nn.synced import separated
from dwsep_zoo.training.checkpoints import save_checkpoint

IN_VALIDATION = 512
"""Training pictures before a validation; of 10,000 they take at most 3 % of an epoch's time."""
IN_TEST = 8192
"""Training pictures before the test."""


class PreciseStatistics(Callback):
    """Computes the statistics of the norms anew before each validation of a training, and its test.

    The pictures are the same every time. Norms that are frozen keep their statistics.
    """

    def __init__(self) -> None:
        self.trained: list[str] = []  # norms that normalise with the batch's statistics
        self.kept: list[RawBatch] = []  # decoded once for all validations

    def state_dict(self) -> dict[str, Any]:
        return {"trained": self.trained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trained = state_dict["trained"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note_trained(pl_module)  # perhaps in the middle of an epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note_trained(pl_module)

    def _note_trained(self, pl_module: L.LightningModule) -> None:
        norms = norms_of(pl_module.get_submodule("model"))
        self.trained = [name for name, norm in norms.items() if norm.training]

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: ImageData = trainer.datamodule  # type: ignore[attr-defined]
        if self.trained and not self.kept:
            self.kept = list(data.statistics_dataloader(IN_VALIDATION))
        self._renew(trainer, pl_module, self.kept)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: ImageData = trainer.datamodule  # type: ignore[attr-defined]
        self._renew(trainer, pl_module, data.statistics_dataloader(IN_TEST))

    def _renew(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batches: Iterable[RawBatch]
    ) -> None:
        model = pl_module.get_submodule("model")
        norms = {name: norm for name, norm in norms_of(model).items() if name in self.trained}
        if not norms:
            return
        data: ImageData = trainer.datamodule  # type: ignore[attr-defined]
        images = (
            data.prepare_batch(move_data_to_device(batch, pl_module.device))[0] for batch in batches
        )
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            moments = torch.stack(list(batch_moments(model, norms, images)))
        if trainer.world_size > 1:
            shares = [moments] * trainer.world_size
            torch.distributed.all_gather_object(shares, moments)
            moments = torch.cat(shares)
        set_statistics(norms, moments)


def recall_norms(trainer: L.Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Before the test of a checkpoint: tell the callback which norms were trained in its epoch."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, PreciseStatistics):
            callback.load_state_dict(checkpoint["callbacks"][callback.state_key])


def keep_norms(module: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """After the test of a checkpoint: save the statistics with which it was tested, if others."""
    tested, before = module.state_dict(), checkpoint["state_dict"]
    if any(not torch.equal(tested[name].cpu(), before[name]) for name in before):
        save_checkpoint({**checkpoint, "state_dict": tested}, path)


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


def batch_moments(
    model: nn.Module, norms: Mapping[str, _BatchNorm], images: Iterable[Tensor]
) -> Iterator[Tensor]:
    """Yield the moments of the norms' inputs for each batch of this process.

    Each norm normalises with the batch's own statistics, as in training, so that the next one sees
    the input that it would have with precise statistics before it. The other modules stay in the
    mode they are in: in evaluation there is no dropout and no stochastic depth.

    Args:
        model: the network.
        norms: those of its norms that are meant.
        images: batches, (N, C, H, W).

    Yields:
        (3, channels of all norms) float64: count of values, mean and biased variance.
    """
    counts: dict[nn.Module, int] = {}

    def count(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        counts[norm] = inputs[0].numel() // inputs[0].shape[1]

    with separated(norms.values()), _measuring(norms.values()):
        handles = [norm.register_forward_pre_hook(count) for norm in norms.values()]
        try:
            for batch in images:
                model(batch)
                yield torch.cat([_moments(norm, counts[norm]) for norm in norms.values()], dim=1)
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _measuring(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """After each batch the running statistics of the norms are the batch's alone."""
    before = [(norm, norm.training, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, *_ in before:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.zero_()  # a weight of 0 would not remove an infinite value
        norm.running_var.zero_()
        norm.train()
        norm.momentum, norm.num_batches_tracked = 1.0, None
    try:
        yield
    finally:
        for norm, training, momentum, tracked in before:
            norm.train(training)
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def _moments(norm: _BatchNorm, count: int) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, unbiased = norm.running_mean.cpu().double(), norm.running_var.cpu().double()
    return torch.stack([torch.full_like(mean, count), mean, unbiased * ((count - 1) / count)])


def set_statistics(norms: Mapping[str, _BatchNorm], moments: Tensor) -> None:
    """Set the running statistics to the mean and unbiased variance of all batches together.

    Args:
        norms: the norms, in the order of their channels.
        moments: (batches, 3, channels of all norms), see :func:`batch_moments`.
    """
    count, mean, var = moments.unbind(1)
    total = count.sum(0)
    centre = (count * mean).sum(0) / total
    spread = (count * (var + (mean - centre).square())).sum(0) / (total - 1)
    chans = [norm.num_features for norm in norms.values()]
    for norm, own_mean, own_var in zip(
        norms.values(), centre.split(chans), spread.split(chans), strict=True
    ):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(own_mean)
        norm.running_var.copy_(own_var)
