"""Parts of squares, cut out and resized bilinearly without anti-aliasing, each mirrored or not.

Two functions compute it, alike to one of 255 levels: one by one, which the CPU does faster, and at
once, with few launches on a GPU. ``parts`` is (N, 5) integers: top, left, mirrored, height, width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resized_parts(images: Tensor, parts: Tensor, size: int) -> Tensor:
    """``(N, C, S, S)`` uint8 -> ``(N, C, size, size)`` of 0-255, by the function for the device."""
    resize = resized_one_by_one if images.device.type == "cpu" else resized_at_once
    return resize(images, parts, size)


def resized_one_by_one(images: Tensor, parts: Tensor, size: int) -> Tensor:
    """``(N, C, S, S)`` uint8 -> ``(N, C, size, size)`` uint8 in channels_last.

    PyTorch resizes bytes with vector instructions, weights of 16 bits, and rounding after each of
    the two directions.
    """
    shape = (*images.shape[:2], size, size)
    found = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    for image, result, part in zip(images, found, parts.tolist(), strict=True):
        top, left, mirrored, height, width = part
        pixels = image[None, :, top : top + height, left : left + width]
        resized = F.interpolate(pixels, (size, size), mode="bilinear")[0]
        result.copy_(resized.flip(2) if mirrored else resized)
    return found


def resized_at_once(images: Tensor, parts: Tensor, size: int) -> Tensor:
    """``(N, C, S, S)`` uint8 -> ``(N, C, size, size)`` float32, without waiting for the device."""
    top, left, mirrored, height, width = parts.T
    side = images.shape[-1]
    rows, cols = _sources(top, height, size, side), _sources(left, width, size, side)
    cols = torch.where(mirrored[:, None] == 1, cols.flip(1), cols)
    x, y = cols[:, None, :].expand(-1, size, size), rows[:, :, None].expand(-1, size, size)
    return F.grid_sample(images.float(), torch.stack([x, y], -1), align_corners=False).round_()


def _sources(first: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """(N, size): the source of each pixel of a side, -1 ... 1 over the square."""
    position = torch.arange(size, dtype=torch.float32, device=first.device) + 0.5
    first, length = first[:, None].float(), length[:, None].float()
    # Not beyond the centres of the outer pixels, which would mix in pixels outside the part.
    inside = (position * (length / size)).clamp(min=0.5).minimum(length - 0.5)
    return (first + inside) * (2 / side) - 1
