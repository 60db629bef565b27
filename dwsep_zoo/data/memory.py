"""Images that live in memory as uint8."""

from __future__ import annotations

import torch
from torch import Tensor

from dwsep_zoo.data.augment import DRAWS, DRAWS_BELOW
from dwsep_zoo.data.loader import BatchKey, generator
from dwsep_zoo.data.splits import Images


class MemoryReader:
    """Batches of images in memory.

    Args:
        images: with their pixels.
        draw: add the random integers that the augmentation of the batch needs. They are whole
            numbers because a trainer of reduced precision rounds all others.
    """

    def __init__(self, images: Images, *, draw: bool):
        assert images.pixels is not None
        self.shape = images.pixels.shape[1:]
        self.rows = images.pixels.flatten(1)
        self.labels = torch.from_numpy(images.labels)
        self.draw = draw

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, ...]:
        """(N, C, H, W) uint8 in channels_last, (N,) int64, and where drawn (N, DRAWS) int64."""
        # One copy of memory an image; indexing pixel by pixel takes twenty times as long.
        images = self.rows.index_select(0, key.indices).view(-1, *self.shape).permute(0, 3, 1, 2)
        labels = self.labels[key.indices]
        if not self.draw:
            return images, labels
        g = generator(key.seed, "draws", key.epoch, key.number, key.rank)
        return images, labels, torch.randint(DRAWS_BELOW, (len(labels), DRAWS), generator=g)


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
