"""Images in memory, or in a memory map, as uint8."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from dwsep_zoo.data.loader import BatchKey, Draw, RawBatch
from dwsep_zoo.data.splits import Images
from dwsep_zoo.errors import UserError

BLOCK = 1 << 22  # values


class MemoryReader:
    """Batches of decoded images.

    Args:
        pixels: (n, H, W, C) uint8.
        labels: (m,) int64, of the images of the split.
        draw: of a training batch; ``None``: evaluation.
        positions: (m,) int64, of these images in ``pixels``; ``None``: 0 ... m - 1.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: np.ndarray,
        *,
        draw: Draw | None,
        positions: Tensor | None = None,
    ):
        self.shape = pixels.shape[1:]
        self.rows = pixels.flatten(1)
        self.labels = torch.from_numpy(labels)
        self.draw = draw
        self.positions = positions

    def __getitem__(self, key: BatchKey) -> RawBatch:
        """The batch of this key, its images in channels_last."""
        rows = key.indices if self.positions is None else self.positions[key.indices]
        # One memory copy per image; indexing pixel by pixel takes twenty times as long.
        images = self.rows.index_select(0, rows).view(-1, *self.shape).permute(0, 3, 1, 2)
        labels = self.labels[key.indices]
        draws = self.draw and self.draw(key)
        return RawBatch(images, labels, training=draws is not None, draws=draws)


def mean_and_std(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, of values scaled to 0-1, rounded to 4 digits."""
    assert images.pixels is not None
    channels = images.pixels.shape[-1]
    rows = images.pixels.flatten(1)
    # Sums of whole numbers are exact, so the result is the same on every machine: in float32 below
    # 2^24, which 256 squares of 255 do not reach.
    total = torch.zeros(2, rows.shape[1], dtype=torch.int64)
    for part in rows.split(max(1, min(256, BLOCK // rows.shape[1]))):
        values = part.float()
        total += torch.stack([values.sum(0), values.square_().sum(0)]).long()
    sums = total.view(2, -1, channels).sum(1)
    mean, square = sums.double() / (images.pixels.numel() // channels)
    std = (square - mean.square()).clamp(min=1.0).sqrt()  # not 0 for a constant channel
    return _rounded(mean), _rounded(std)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in (values / 255).tolist())


def check_memory(num_images: int, side: int, *, bytes_per_pixel: int) -> None:
    """Raises UserError for square images that take more memory than the machine has."""
    needed = num_images * side**2 * bytes_per_pixel
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > installed:
        raise UserError(
            f"{num_images} images of {side} pixels take {needed / 1e9:.3g} GB of memory, this "
            f"machine has {installed / 1e9:.3g} GB; set a smaller data.image_size"
        )
