"""The operations of AutoAugment, RandAugment and TrivialAugment on batches, on their device.

Every image of a batch has an operation and a strength of its own. The operations are Pillow's, as
timm and torchvision apply them to pictures one by one: shears, translations and rotations are one
bilinear resampling by a matrix an image, and all changes of single values are one table an image.
A grey value may differ by one, where Pillow rounds otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor


class Op(IntEnum):
    """An operation and the meaning of its strength; those of one kind stand together."""

    IDENTITY = 0
    SHEAR_X = 1  # tangent
    SHEAR_Y = 2
    TRANSLATE_X = 3  # pixels
    TRANSLATE_Y = 4
    ROTATE = 5  # degrees, counter-clockwise
    BRIGHTNESS = 6  # factor; 1 changes nothing
    CONTRAST = 7
    POSTERIZE = 8  # bits that are kept
    SOLARIZE = 9  # values from here on are inverted
    SOLARIZE_ADD = 10  # added to values below 128
    INVERT = 11  # without a strength, as the two below
    AUTO_CONTRAST = 12
    EQUALIZE = 13
    COLOR = 14  # factor; 0 is grey
    SHARPNESS = 15  # factor; 0 is smooth


def distort(
    images: Tensor, ops: Tensor, strengths: Tensor, fill: Sequence[float], *, whole: bool
) -> Tensor:
    """Apply one operation to each image: ``(N, C, H, W)`` uint8 -> likewise.

    Args:
        images: of 1 or 3 channels.
        ops: (N,) of :class:`Op`.
        strengths: (N,) float32, see :class:`Op`.
        fill: what is moved in at the edges, 0-255 for each channel.
        whole: compute every kind of operation for all images, so that nothing waits for the
            device; else for those that take one.
    """

    def warp(images: Tensor, ops: Tensor, strengths: Tensor) -> Tensor:
        return _warp(images, ops, strengths, fill)

    kinds: tuple[tuple[Op, Op, Callable[[Tensor, Tensor, Tensor], Tensor]], ...] = (
        (Op.SHEAR_X, Op.ROTATE, warp),
        (Op.BRIGHTNESS, Op.EQUALIZE, _look_up),
        (Op.COLOR, Op.COLOR, _saturate),
        (Op.SHARPNESS, Op.SHARPNESS, _sharpen),
    )
    changed = images.clone()
    for first, last, change in kinds:
        chosen = (ops >= first) & (ops <= last)
        if whole:
            new = change(images, ops, strengths)
            changed = torch.where(chosen[:, None, None, None], new, changed)
        elif len(rows := chosen.nonzero()[:, 0]):
            changed[rows] = change(images[rows], ops[rows], strengths[rows])
    return changed


def luma(images: Tensor) -> Tensor:
    """``(N, C, H, W)`` of whole numbers -> (N, 1, H, W) int32, as Pillow's mode L."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, 1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _warp(images: Tensor, ops: Tensor, strengths: Tensor, fill: Sequence[float]) -> Tensor:
    """Shear, translate or rotate; outside of the image is ``fill``."""
    height, width = images.shape[2:]
    zero = torch.zeros_like(strengths)

    def of(op: Op) -> Tensor:
        return torch.where(ops == op, strengths, zero)[:, None, None]

    angle = of(Op.ROTATE) * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x, y = _centres(width, images.device)[None, :], _centres(height, images.device)[:, None]
    dx, dy = x - width / 2, y - height / 2
    # Pixels of the result look up where they come from; shears leave the upper left corner.
    source_x = cos * dx - sin * dy + width / 2 + of(Op.SHEAR_X) * y + of(Op.TRANSLATE_X)
    source_y = sin * dx + cos * dy + height / 2 + of(Op.SHEAR_Y) * x + of(Op.TRANSLATE_Y)
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    grid = torch.stack([source_x * (2 / width) - 1, source_y * (2 / height) - 1], -1)
    found = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    outside = torch.stack([torch.full_like(strengths[0], value) for value in fill])
    return torch.where(inside[:, None], found, outside[:, None, None]).round_().byte()


def _look_up(images: Tensor, ops: Tensor, strengths: Tensor) -> Tensor:
    """Change each value by the table of its image and channel."""
    index = images.flatten(2).long()
    tables = _tables(images, index, ops[:, None, None], strengths[:, None, None])
    return tables.gather(2, index).view(images.shape)


def _tables(images: Tensor, index: Tensor, ops: Tensor, strengths: Tensor) -> Tensor:
    """(N, C, 256) uint8: the new value of each value."""
    value = torch.arange(256, dtype=torch.int32, device=images.device)
    bits = (8 - strengths.int()).clamp(0, 8)
    pixels = index.shape[2]
    # The mean grey value is a whole number, rounded.
    total = luma(images).sum((2, 3), dtype=torch.int64)[:, :, None]
    mean = torch.div(2 * total + pixels, 2 * pixels, rounding_mode="floor")
    tables = {
        Op.BRIGHTNESS: value * strengths,
        Op.CONTRAST: mean + strengths * (value - mean),
        Op.POSTERIZE: value >> bits << bits,
        Op.SOLARIZE: torch.where(value < strengths, value, 255 - value),
        Op.SOLARIZE_ADD: torch.where(value < 128, value + strengths, value),
        Op.INVERT: 255 - value,
        Op.AUTO_CONTRAST: _stretched(images, value),
        Op.EQUALIZE: _equalized(images, index, value),
    }
    found = value.float().expand(len(images), 1, 256)  # one for all channels, up to the last two
    for op, table in tables.items():
        found = torch.where(ops == op, table.float(), found)
    return found.clamp(0, 255).byte()  # cut off, as by Pillow


def _stretched(images: Tensor, value: Tensor) -> Tensor:
    """AutoContrast: the darkest value of a channel becomes 0 and the brightest 255."""
    low, high = (end.int()[:, :, None] for end in (images.amin((2, 3)), images.amax((2, 3))))
    span = (high - low).clamp(min=1)
    stretched = torch.div((value - low) * 255, span, rounding_mode="floor")
    return torch.where(high > low, stretched, value)


def _equalized(images: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """Equalize: every value becomes equally frequent, as far as that is possible."""
    n, channels, pixels = index.shape
    ones = torch.ones((), dtype=torch.int32, device=index.device).expand(index.shape)
    histogram = ones.new_zeros((n, channels, 256)).scatter_add(2, index, ones)
    brightest = images.amax((2, 3)).long()[:, :, None]
    step = torch.div(pixels - histogram.gather(2, brightest), 255, rounding_mode="floor")
    below = histogram.cumsum(2, dtype=torch.int32) - histogram
    half = torch.div(step, 2, rounding_mode="floor")
    spread = torch.div(below + half, step.clamp(min=1), rounding_mode="floor")
    return torch.where(step > 0, spread, value)


def _saturate(images: Tensor, ops: Tensor, strengths: Tensor) -> Tensor:
    return _blend(luma(images).float(), images.float(), strengths)


def _sharpen(images: Tensor, ops: Tensor, strengths: Tensor) -> Tensor:
    """Pillow's SMOOTH weighs a pixel five times as much as its neighbours; edges stay."""
    if min(images.shape[2:]) < 3:
        return images
    pixels = images.float()
    inner = pixels[..., 1:-1, 1:-1]
    total = F.avg_pool2d(pixels, 3, stride=1, divisor_override=1)
    smooth = ((total + 4 * inner) / 13 + 0.5).floor()
    sharpened = images.clone()
    sharpened[..., 1:-1, 1:-1] = _blend(smooth, inner, strengths)
    return sharpened


def _blend(plain: Tensor, images: Tensor, strengths: Tensor) -> Tensor:
    """``plain`` at strength 0, the image at 1, and beyond it above; uint8."""
    mixed = plain + strengths[:, None, None, None] * (images - plain)
    return mixed.clamp(0, 255).byte()  # cut off, as by Pillow


def _centres(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, dtype=torch.float32, device=device) + 0.5
