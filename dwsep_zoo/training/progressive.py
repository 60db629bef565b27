"""Progressive resizing: small pictures at first, which cost less, and the full ones later."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.settings import Recipe

SIZES = 8  # steps; kernels prepare for each size anew


def training_size(progress: float, *, full: int, initial: int | None, full_from: float) -> int:
    """Side of the training images, in pixels.

    It rises linearly from ``initial`` to ``full``, in steps of an eighth of ``full``, while the
    training goes from 0 to ``full_from``.

    Args:
        progress: finished part of the training, from 0 to 1.
        full: side of the data's images.
        initial: side at the beginning; ``None``: ``full``.
        full_from: progress at which the side becomes ``full``.
    """
    if initial is None or progress >= full_from:
        return full
    size = initial + (full - initial) * progress / full_from
    step = max(1, full // SIZES)
    return min(full, max(initial, int(size) // step * step))


def resize(images: Tensor, size: int) -> Tensor:
    """``(N, C, H, H)`` -> ``(N, C, size, size)``, bilinear, with anti-aliasing."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def check_progressive(recipe: Recipe, image_size: int, output_stride: int) -> None:
    """Raises UserError for a first size that these images or this network cannot have."""
    initial = recipe.initial_size
    if initial is not None and not output_stride <= initial <= image_size:
        raise UserError(
            f"recipe.initial_size must be a whole number from {output_stride}, the network's "
            f"output stride, to {image_size}, the size of the images; got {initial!r}"
        )
