"""Images that live in memory, or in a memory map, as uint8."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dwsep_zoo.data.augment import BatchAugment, draw_batch
from dwsep_zoo.data.loader import BatchKey
from dwsep_zoo.data.splits import Images


class MemoryReader:
    """Batches of images that are decoded.

    Args:
        pixels: (n, H, W, C) uint8.
        labels: of each image of the split.
        augment: what draws the random integers that come with a batch; ``None``: none do.
        positions: of each image of the split in ``pixels``; ``None``: the same.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: np.ndarray,
        *,
        augment: BatchAugment | None,
        positions: Tensor | None = None,
    ):
        self.shape = pixels.shape[1:]
        self.rows = pixels.flatten(1)
        self.labels = torch.from_numpy(labels)
        self.augment = augment
        self.positions = positions

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, ...]:
        """(N, C, H, W) uint8 in channels_last, (N,) int64, and where drawn (N, k) int64."""
        rows = key.indices if self.positions is None else self.positions[key.indices]
        # One copy of memory an image; indexing pixel by pixel takes twenty times as long.
        images = self.rows.index_select(0, rows).view(-1, *self.shape).permute(0, 3, 1, 2)
        labels = self.labels[key.indices]
        if self.augment is None:
            return images, labels
        return images, labels, draw_batch(self.augment, key, len(self.labels))


def mean_and_std(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of every channel, of pixel values scaled to 0-1, over all pixels, rounded to 4 digits."""
    assert images.pixels is not None
    channels = images.pixels.shape[-1]
    # Whole numbers: the sums are exact, so the result is the same on every machine.
    total = torch.zeros(2, channels, dtype=torch.int64)
    for part in images.pixels.view(-1, channels).split(1 << 20):
        values = part.int()
        total += torch.stack([values.sum(0), values.square().sum(0)])
    mean, square = total.double() / (images.pixels.numel() // channels)
    std = (square - mean.square()).clamp(min=1.0).sqrt()  # an empty channel has none
    return _rounded(mean), _rounded(std)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in (values / 255).tolist())
