"""What happens to images once they are cropped: a policy, colours, erasing; in batches.

Random numbers come in as whole numbers, see :mod:`dwsep_zoo.data.augment`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dwsep_zoo.data.policies import change_batch, table

DRAWS_BELOW = 2**31
CROP_DRAWS, COLOUR_DRAWS, BOX_DRAWS = 5, 3, 4
"""Columns of a table of draws: of the crop, the colours, then those of the policy, then a box."""
ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
"""Of arXiv:1708.04896, section 4.2, with timm's smallest ratio."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """A policy, colour jitter and random erasing of batches.

    Args:
        auto_augment: a policy, see :mod:`dwsep_zoo.data.policies`; ``None``: none.
        color_jitter: strength of random brightness, contrast and saturation; ``None``: none.
        erase: probability that a rectangle is set to the mean, arXiv:1708.04896; ``None``: 0.
    """

    auto_augment: str | None = None
    color_jitter: float | None = None
    erase: float | None = None

    def with_effects(self, own: Tensor, g: torch.Generator, side: int) -> Tensor:
        """(N, k) int64: the columns of crop and colours, and those that the effects need.

        ``side``: of the images, in pixels.
        """
        drawn = [own]
        if self.auto_augment:
            drawn.append(table(self.auto_augment, side).draw(len(own), g))
        if self.erase:
            drawn.append(draw_boxes(len(own), g, side, self.erase))
        return torch.cat(drawn, 1)

    def change(self, images: Tensor, draws: Tensor, mean: Sequence[float]) -> Tensor:
        """Policy and colours of ``(N, C, H, W)`` uint8, or float of 0-255, -> one of them.

        ``mean`` is of values in 0-1; the policy moves it in at the edges.
        """
        if self.auto_augment:
            first = CROP_DRAWS + COLOUR_DRAWS
            steps = draws[:, first : -BOX_DRAWS if self.erase else None]
            images = images if images.dtype == torch.uint8 else images.round().byte()
            images = change_batch(images, steps, [255 * value for value in mean])
        if self.color_jitter:
            colours = draws[:, CROP_DRAWS : CROP_DRAWS + COLOUR_DRAWS]
            images = jitter(images.float(), colours, self.color_jitter)
        return images

    def blank(self, images: Tensor, draws: Tensor) -> Tensor:
        """Set a rectangle of normalised images to 0, in place."""
        return erase(images, draws[:, -BOX_DRAWS:]) if self.erase else images


def jitter(images: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Change brightness, contrast and saturation of ``(N, C, H, W)`` floats of 0-255.

    Args:
        images: of 1 or 3 channels.
        draws: (N, 3), below ``DRAWS_BELOW``.
        strength: factors are from 1 - ``strength``, at least 0, to 1 + ``strength``.
    """
    low, high = max(0.0, 1 - strength), 1 + strength
    factors = between(low, high, draws.float() / DRAWS_BELOW)
    brightness, contrast, saturation = factors.T[:, :, None, None, None]
    images = (images * brightness).clamp_(0, 255)
    images = images.lerp(_grey(images).mean((2, 3), keepdim=True), 1 - contrast).clamp_(0, 255)
    return images.lerp(_grey(images), 1 - saturation).clamp_(0, 255)


def draw_boxes(count: int, g: torch.Generator, side: int, chance: float) -> Tensor:
    """(count, 4) int64: top, left, height, width of what is erased; 0 pixels high: nothing."""
    size, fits = draw_parts(count, g, side, ERASED_AREA, ERASED_RATIO, most=side - 1)
    u = torch.rand((count, 3), dtype=torch.float64, generator=g)
    place = u[:, :2] * (side - size + 1)
    return torch.cat([place, size * (fits & (u[:, 2] < chance))[:, None]], 1).long()


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Set a rectangle of each of ``(N, C, H, W)`` to 0, in place; ``boxes``: ``draw_boxes``'s."""
    top, left, height, width = boxes.T
    rows = _within(images.shape[2], top, height)
    cols = _within(images.shape[3], left, width)
    return images.masked_fill_((rows[:, :, None] & cols[:, None, :])[:, None], 0.0)


def draw_parts(
    count: int,
    g: torch.Generator,
    side: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    *,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Sizes of random parts of a square, (count, 2) float64 height and width, and which fit.

    As in timm and torchvision it is the first of ten tries that fits.

    Args:
        count: of parts.
        g: random numbers.
        side: of the square, in pixels.
        scale: smallest and largest part of its area.
        ratio: smallest and largest width / height.
        most: largest side that fits.
    """
    u = torch.rand((count, 10, 2), dtype=torch.float64, generator=g)
    area = side**2 * between(*scale, u[..., 0])
    least, largest = ratio
    shape = between(math.log(least), math.log(largest), u[..., 1]).exp()
    tried = torch.stack([(area / shape).sqrt(), (area * shape).sqrt()], -1).round()
    fits = ((tried > 0) & (tried <= most)).all(-1)
    return tried[torch.arange(count), fits.int().argmax(1)], fits.any(1)


def between(low: float, high: float, u: Tensor) -> Tensor:
    """Numbers of 0-1 over an interval."""
    return low + (high - low) * u


def _within(size: int, first: Tensor, length: Tensor) -> Tensor:
    """(N, size): which positions lie in an interval."""
    position = torch.arange(size, device=first.device)
    return (position >= first[:, None]) & (position < (first + length)[:, None])


def _grey(images: Tensor) -> Tensor:
    """Luma, (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
