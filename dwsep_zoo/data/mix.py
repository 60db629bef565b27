"""Mixup and cutmix: images of a batch that are mixed with others of it, and by how much.

Both are one weighted mean of a batch and the batch moved on by one image. In mixup
(arXiv:1710.09412) every pixel has the same weight; in cutmix (arXiv:1905.04899) it is 0 in a
rectangle, where the other image shows, and 1 elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dwsep_zoo.data.loader import BatchKey, RawBatch, Reader, derived_seed
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.settings import Recipe

PARTS = 2**24
"""Draws are whole numbers, here of this part: float32 holds each exactly."""


@dataclass(frozen=True)
class Mixing:
    """How batches are mixed; where both alphas are given, each batch takes one of them at random.

    Args:
        mixup: alpha of the beta distribution of the images' share; ``None``: no mixup.
        cutmix: likewise, of the area.
    """

    mixup: float | None
    cutmix: float | None

    def draw(self, key: BatchKey) -> Tensor:
        """(4,) int64: 1 for cutmix, the share, and the middle's row and column, in ``PARTS``."""
        random = np.random.default_rng(
            derived_seed(key.seed, "mix", key.epoch, key.number, key.rank)
        )
        cut = self.cutmix is not None and (self.mixup is None or random.random() < 0.5)
        alpha = (self.cutmix if cut else self.mixup) or 1.0
        share = random.beta(alpha, alpha)
        parts = [int(PARTS * part) for part in (share, *random.random(2))]
        return torch.tensor([int(cut), *parts])


def mixing_of(recipe: Recipe) -> Mixing | None:
    """The mixing of a recipe, if it has one."""
    if recipe.mixup is None and recipe.cutmix is None:
        return None
    return Mixing(recipe.mixup, recipe.cutmix)


@dataclass(frozen=True)
class MixingReader:
    """Adds the draws of the mixing to a reader's batches."""

    reader: Reader
    mixing: Mixing

    def __getitem__(self, key: BatchKey) -> RawBatch | UserError:
        batch = self.reader[key]
        if isinstance(batch, UserError):
            return batch
        return batch._replace(mix=self.mixing.draw(key))


def mix(images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mix every image with the one before it; the first with the last.

    Args:
        images: ``(N, C, H, W)``, floating-point.
        draws: of :meth:`Mixing.draw`.

    Returns:
        The images, in channels_last, and () float32: the share of each that is its own.
    """
    weights = own_weights(draws, *images.shape[2:])
    pixels = images.permute(0, 2, 3, 1)
    mixed = torch.lerp(partners(pixels), pixels, weights[:, :, None].type_as(pixels))
    return mixed.permute(0, 3, 1, 2), weights.mean()


def own_weights(draws: Tensor, height: int, width: int) -> Tensor:
    """(height, width) float32: the weight of an image's own pixels."""
    cut, share, *middle = draws.float().unbind()
    share = share / PARTS
    half = (1 - share).clamp(min=0).sqrt() / 2
    sides = []
    for size, place in zip((height, width), middle, strict=True):
        reach, place = (half * size).floor(), (place * (size / PARTS)).floor()
        position = torch.arange(size, dtype=torch.float32, device=draws.device)
        sides.append((position >= place - reach) & (position < place + reach))
    other = sides[0][:, None] & sides[1][None, :]
    return torch.where(cut > 0, (~other).float(), share)


def partners(batch: Tensor) -> Tensor:
    """What each of a batch (N, ...), images or labels, is mixed with."""
    return batch.roll(1, 0)
