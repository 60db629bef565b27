"""Augmentation and normalisation of whole batches, on their device.

All are pure functions: random numbers come in as a table of integers, one row an image, which the
loader draws on the CPU, so that a run sees the same pictures on every device. They are integers
because trainers of reduced precision round floating-point numbers; for the same reason no number
here has the default type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep_zoo.data.effects import COLOUR_DRAWS, CROP_DRAWS, DRAWS_BELOW, Effects, draw_parts
from dwsep_zoo.data.loader import BatchKey, generator
from dwsep_zoo.data.parts import resized_parts
from dwsep_zoo.errors import UserError

FLIP = 2
"""The column of the flip in every table of draws: odd numbers mirror."""

ALTERNATE = "alternate"
RESIZED_IN_BATCHES = ("bilinear", "bicubic")
"""Interpolations for :func:`middle`."""


class Drawing(Protocol):
    """An augmentation that draws whole numbers for a batch."""

    @property
    def flip(self) -> bool | str: ...

    def draw(self, count: int, g: torch.Generator, side: int) -> Tensor:
        """(count, k) int64; ``side``: of the augmented images, in pixels."""


def draw_batch(key: BatchKey, augment: Drawing, *, num_images: int, side: int) -> Tensor:
    """(N, k) int64: the draws of a batch, a function of its key.

    Args:
        key: of the batch.
        augment: what they are for.
        num_images: of the split.
        side: of the augmented images, in pixels.
    """
    g = generator(key.seed, "draws", key.epoch, key.number, key.rank)
    draws = augment.draw(len(key.indices), g, side)
    if augment.flip == ALTERNATE:
        draws[:, FLIP] = halves(key.seed, num_images)[key.indices] + key.rounds
    return draws


@lru_cache(maxsize=1)
def halves(seed: int, num_images: int) -> Tensor:
    """(num_images,) int64 in random order: 1 for one half of the images, 0 for the other."""
    return torch.randperm(num_images, generator=generator(seed, "halves")) % 2


@dataclass(frozen=True)
class CropFlip(Effects):
    """Random shift, horizontal flip and cutout of small images, and effects.

    Args:
        crop_padding: pixels added around the image, from which a window of the old size is cut.
        padding_mode: ``reflect`` (the image's mirror, without its edge) or ``zeros`` (black).
        flip: mirror every other image left to right. ``alternate``: mirror a random half of them
            in even epochs and the other half in odd ones. Two epochs then show every image both
            ways, while independent flips show half of them the same way twice, so that a short
            run needs fewer epochs (arXiv:2404.00498). An image that an epoch repeats alternates
            each time.
        cutout: side of the square that is set to the mean, arXiv:1708.04552; 0: none.
    """

    crop_padding: int = 4
    padding_mode: str = "reflect"
    flip: bool | str = True
    cutout: int = 0

    def check(self, image_size: int) -> None:
        """Raises UserError for a padding that is too large for images of this size."""
        if self.padding_mode == "reflect" and self.crop_padding >= image_size:
            raise UserError(
                f"data.augment.crop_padding={self.crop_padding} mirrors more than the whole image "
                f"of {image_size} pixels"
            )

    def draw(self, count: int, g: torch.Generator, side: int) -> Tensor:
        """(count, k) int64: crop (row, column), flip, cutout (row, column), then the effects."""
        crop = torch.randint(DRAWS_BELOW, (count, CROP_DRAWS), generator=g)
        colours = torch.randint(DRAWS_BELOW, (count, COLOUR_DRAWS), generator=g)
        return self.with_effects(torch.cat([crop, colours], 1), g, side)

    def __call__(
        self, images: Tensor, draws: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> Tensor:
        """``(N, C, H, W)`` uint8 -> augmented, normalised float32 in channels_last."""
        images = self.change(self.crop_flip(images, draws), draws, mean)
        return self.blank(self.cut_out(normalise(images, mean, std), draws), draws)

    def crop_flip(self, images: Tensor, draws: Tensor) -> Tensor:
        """``(N, C, H, W)`` uint8 and ``(N, k)`` integers -> ``(N, C, H, W)`` uint8.

        One gather of pixels does everything: each output pixel computes its source.
        """
        if not self.crop_padding and not self.flip:
            return images
        n, c, h, w = images.shape
        pad = self.crop_padding
        pixels = images.permute(0, 2, 3, 1)
        if self.padding_mode == "zeros":
            pixels = F.pad(pixels, (0, 0, pad, pad, pad, pad))
        stored_h, stored_w = pixels.shape[1:3]
        rows = _window(h, draws[:, 0] % (2 * pad + 1))
        cols = _window(w, draws[:, 1] % (2 * pad + 1))
        if self.flip:
            cols = torch.where(draws[:, FLIP, None] % 2 == 1, cols.flip(1), cols)
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
        """Positions that the square covers, (N, size); it may extend beyond the edge."""
        first = draws[:, None] % size - self.cutout // 2
        position = torch.arange(size, device=draws.device)
        return (position >= first) & (position < first + self.cutout)


@dataclass(frozen=True)
class CachedCrop(Effects):
    """Random resized crop, flip and effects of squares that were decoded once.

    It is :class:`~dwsep_zoo.data.pictures.ResizedCrop` in batches, with differences, for which
    results of the two are kept apart. The part is cut out of the middle square, whose side of
    ``cache_size`` pixels is the picture's shorter side, and not out of the whole picture. It is
    resized bilinearly whatever the interpolation, and without anti-aliasing: a part smaller than
    ``image_size`` is enlarged, where nothing can alias; a larger one is reduced by at most
    ``cache_size / image_size``, by default 1.14, and up to 2 every pixel of it counts, with fine
    patterns a little sharper than Pillow's. Colours change in the fixed order brightness,
    contrast, saturation.

    Args:
        cache_size: side of the squares.
        image_size: side of the result.
        scale: smallest and largest part of the area that is cut out, arXiv:1409.4842.
        ratio: smallest and largest width / height of that part.
        flip: as for :class:`CropFlip`.
    """

    cache_size: int
    image_size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool | str = True

    def draw(self, count: int, g: torch.Generator, side: int) -> Tensor:
        """(count, k) int64: top, left, flip, height, width of the part, then the effects.

        Where none of ten parts fits, it is the largest possible.
        """
        size, (least, most) = self.cache_size, self.ratio
        part, fits = draw_parts(count, g, size, self.scale, self.ratio, most=size)
        largest = torch.tensor([min(1.0, 1 / least), min(1.0, most)], dtype=torch.float64)
        part = torch.where(fits[:, None], part, (size * largest).round().clamp(min=1))
        place = torch.rand((count, 2), dtype=torch.float64, generator=g)
        place = torch.where(fits[:, None], place * (size - part + 1), (size - part) / 2)
        rest = torch.randint(DRAWS_BELOW, (count, 1 + COLOUR_DRAWS), generator=g)
        own = torch.cat([place.long(), rest[:, :1], part.long(), rest[:, 1:]], 1)
        return self.with_effects(own, g, side)

    def __call__(
        self, images: Tensor, draws: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> Tensor:
        """``(N, C, S, S)`` uint8 -> ``(N, C, s, s)`` normalised float32 in channels_last."""
        images = self.change(self.crop(images, draws), draws, mean)
        return self.blank(normalise(images, mean, std), draws)

    def crop(self, images: Tensor, draws: Tensor) -> Tensor:
        """Cut out the parts and resize them: ``(N, C, S, S)`` uint8 -> ``(N, C, s, s)``."""
        top, left, flip, height, width = draws[:, :5].T
        mirrored = flip % 2 if self.flip else torch.zeros_like(flip)
        parts = torch.stack([top, left, mirrored, height, width], 1)
        return resized_parts(images, parts, self.image_size)


def middle(images: Tensor, window: int, size: int, interpolation: str) -> Tensor:
    """Cut out the middle and resize it, with anti-aliasing: ``(N, C, S, S)`` uint8 to ``size``.

    Nothing is computed if ``window`` is ``size``. The result is then that of
    :func:`~dwsep_zoo.data.pictures.eval_transform`, which made the squares, if ``S - window`` is a
    multiple of 4, such as 256 - 224; otherwise it may be shifted by one pixel.
    """
    first = round((images.shape[-1] - window) / 2)
    images = images[..., first : first + window, first : first + window]
    if window == size:
        return images
    resized = F.interpolate(images.float(), size, mode=interpolation, antialias=True)
    return resized.round_().clamp_(0, 255)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(N, C, H, W)`` of 0-255 -> float32 in the channels_last memory format.

    ``mean`` and ``std`` are of pixel values scaled to 0-1. Images that are not uint8 may be
    overwritten.
    """
    n, c, h, w = images.shape
    pixels = images.permute(0, 2, 3, 1).contiguous().view(n, h, w * c)
    # Whole rows of w * c numbers vectorise and the 3 numbers of a pixel do not: ten times faster.
    shift = _row(mean, w, images.device).mul_(255)
    scale = _row(std, w, images.device).mul_(255).reciprocal_()
    return pixels.float().sub_(shift).mul_(scale).view(n, h, w, c).permute(0, 3, 1, 2)


def _row(channels: Sequence[float], width: int, device: torch.device) -> Tensor:
    """``(width * C,)`` float32: the channels' values, repeated.

    They are written on the device: a copy from the host would wait for it.
    """
    full = partial(torch.full, (width,), dtype=torch.float32, device=device)
    return torch.stack([full(value) for value in channels], 1).flatten()


def _window(size: int, first: Tensor) -> Tensor:
    """Positions first ... first + size - 1 of every image, (N, size)."""
    return first[:, None] + torch.arange(size, device=first.device)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions outside of 0 ... size - 1 back inside, without repeating the edge."""
    return size - 1 - (size - 1 - position.abs()).abs()
