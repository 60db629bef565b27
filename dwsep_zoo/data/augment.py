"""Augmentation and normalisation of whole batches, on the device where they are.

Both are pure functions: what is random comes in as a table of integers, one row an image, that the
loader has drawn on the CPU. So the pictures of a run are the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dwsep_zoo.data.options import at_least, choose
from dwsep_zoo.errors import UserError

DRAWS = 5
"""Random integers an image needs: crop (row, column), flip, cutout (row, column)."""
DRAWS_BELOW = 2**31

PADDING_MODES = ("reflect", "zeros")


@dataclass(frozen=True)
class CropFlip:
    """Random shift, horizontal flip and cutout of small images.

    Args:
        crop_padding: pixels put around the image, of which a window of the old size is then cut.
        padding_mode: ``reflect`` (the image's mirror, without its edge) or ``zeros`` (black).
        flip: whether every other image is mirrored left to right.
        cutout: side of the square that is set to the mean, arXiv:1708.04552; 0: none.
    """

    crop_padding: int = 4
    padding_mode: str = "reflect"
    flip: bool = True
    cutout: int = 0

    def check(self, image_size: int) -> None:
        """Raises UserError for values that images of this size cannot take."""
        at_least("data.augment.crop_padding", self.crop_padding, 0)
        at_least("data.augment.cutout", self.cutout, 0)
        choose(self.padding_mode, PADDING_MODES, "data.augment.padding_mode")
        if self.padding_mode == "reflect" and self.crop_padding >= image_size:
            raise UserError(
                f"data.augment.crop_padding={self.crop_padding} mirrors more than the whole image "
                f"of {image_size} pixels"
            )

    def crop_flip(self, images: Tensor, draws: Tensor) -> Tensor:
        """``(N, C, H, W)`` uint8 and ``(N, DRAWS)`` integers -> ``(N, C, H, W)`` uint8.

        One gather of pixels does everything: each output pixel computes where it comes from.
        """
        if not self.crop_padding and not self.flip:
            return images
        n, c, h, w = images.shape
        pad = self.crop_padding
        pixels = images.permute(0, 2, 3, 1)
        if self.padding_mode == "zeros":
            pixels = torch.nn.functional.pad(pixels, (0, 0, pad, pad, pad, pad))
        stored_h, stored_w = pixels.shape[1:3]
        rows = _window(h, draws[:, 0] % (2 * pad + 1))
        cols = _window(w, draws[:, 1] % (2 * pad + 1))
        if self.flip:
            cols = torch.where(draws[:, 2:3] % 2 == 1, cols.flip(1), cols)
        if self.padding_mode == "reflect":
            rows, cols = _reflect(rows - pad, h), _reflect(cols - pad, w)
        image = torch.arange(n, device=images.device)
        index = (image[:, None, None] * stored_h + rows[:, :, None]) * stored_w + cols[:, None, :]
        gathered = pixels.reshape(-1, c).index_select(0, index.flatten())
        return gathered.view(n, h, w, c).permute(0, 3, 1, 2)

    def cut_out(self, images: Tensor, draws: Tensor) -> Tensor:
        """Set a square around a random pixel of normalised ``(N, C, H, W)`` to 0, in place."""
        if not self.cutout:
            return images
        h, w = images.shape[2:]
        rows = self._covered(h, draws[:, 3])
        cols = self._covered(w, draws[:, 4])
        return images.masked_fill_((rows[:, :, None] & cols[:, None, :])[:, None], 0.0)

    def _covered(self, size: int, draws: Tensor) -> Tensor:
        """Which of ``size`` positions the square covers; it may hang over the edge. (N, size)."""
        first = draws[:, None] % size - self.cutout // 2
        position = torch.arange(size, device=draws.device)
        return (position >= first) & (position < first + self.cutout)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(N, C, H, W)`` uint8 -> float32 in the channels_last memory format.

    ``mean`` and ``std`` are of pixel values scaled to 0-1.
    """
    n, c, h, w = images.shape
    pixels = images.permute(0, 2, 3, 1).contiguous().view(n, h, w * c)
    # Whole rows of w * c numbers vectorise, the 3 numbers of a pixel do not: ten times faster.
    shift = torch.tensor(mean, device=images.device).mul_(255).repeat(w)
    scale = torch.tensor(std, device=images.device).mul_(255).reciprocal_().repeat(w)
    return pixels.float().sub_(shift).mul_(scale).view(n, h, w, c).permute(0, 3, 1, 2)


def _window(size: int, first: Tensor) -> Tensor:
    """Positions first ... first + size - 1 of every image, (N, size)."""
    return first[:, None] + torch.arange(size, device=first.device)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions outside of 0 ... size - 1 back inside, without repeating the edge."""
    return size - 1 - (size - 1 - position.abs()).abs()
