"""What a training counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Mean(Metric):
    """The mean of numbers that come in batches, over an epoch and all processes.

    Its sums stay at one place in memory, so that a CUDA graph can add to them. Counts are exact up
    to 2^24.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(shape), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(shape), dist_reduce_fx="sum")

    def add(self, total: Tensor, count: int) -> None:
        """Add a batch: the sum of its numbers and how many they are."""
        self.total += total
        self.count += count

    def update(self) -> None:
        """Tell torchmetrics that something was added; once an epoch is enough."""

    def compute(self) -> Tensor:
        return self.total / self.count

    def reset(self) -> None:
        places = {name: getattr(self, name) for name in ("total", "count")}
        super().reset()
        for name, place in places.items():
            if not place.is_inference():  # what processes have put together in an evaluation
                setattr(self, name, place.zero_())


class ClassMean(Mean):
    """The mean over the classes of the means over their images; classes without any are left out.

    Of right answers that is balanced accuracy.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)

    def add_images(self, values: Tensor, labels: Tensor) -> None:
        """Add the numbers ``(N,)`` of images and their classes."""
        self.total.index_add_(0, labels, values.to(self.total.dtype))
        self.count.index_add_(0, labels, torch.ones_like(labels, dtype=self.count.dtype))

    def compute(self) -> Tensor:
        seen = self.count > 0
        return (self.total[seen] / self.count[seen]).mean()
