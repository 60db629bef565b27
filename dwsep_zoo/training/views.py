"""Several views of each image, whose outputs validation and test average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def average(
    model: Callable[[Tensor], Tensor], images: Tensor, *, flip: bool, shift: bool
) -> Tensor:
    """The mean of the model's float32 outputs for the views of ``(N, C, H, W)`` images.

    Args:
        model: from ``(N, C, H, W)`` to logits.
        images: as a network takes them.
        flip: each view is mirrored left to right, too.
        shift: the image is moved by a pixel to the lower right and to the upper left, too; its edge
            is what is mirrored there. Small images only: of large ones a pixel changes nothing.
    """
    shown = views(images, flip=flip, shift=shift)
    total = model(shown[0]).float()
    for view in shown[1:]:
        total = total + model(view).float()
    return total / len(shown)


def views(images: Tensor, *, flip: bool, shift: bool) -> list[Tensor]:
    """The images first; in all 1, 2, 3 or 6 of what they are like."""
    shown = [images]
    if shift:
        height, width = images.shape[-2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        shown += [padded[..., :height, :width], padded[..., 2:, 2:]]
    if flip:
        shown += [view.flip(-1) for view in shown]
    return shown


def in_words(recipe: dict[str, Any]) -> str:
    """What is averaged, for the log; empty: nothing."""
    ways = {"eval_shift": "moved by a pixel to two sides", "eval_flip": "mirrored"}
    chosen = [words for key, words in ways.items() if recipe[key]]
    return f"each image and the same {' and '.join(chosen)} averaged" if chosen else ""
