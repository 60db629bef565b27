"""Views of an image whose outputs validation and test average."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from dwsep_zoo.schema.settings import Recipe


def average(
    model: Callable[[Tensor], Tensor], images: Tensor, *, flip: bool, shift: bool
) -> Tensor:
    """The mean of the model's float32 outputs for the views of ``(N, C, H, W)`` images.

    Args:
        model: from ``(N, C, H, W)`` to logits.
        images: as a network takes them.
        flip: add the mirror image of each view.
        shift: add the image moved by a pixel to the lower right and to the upper left, its edge
            mirrored. For small images: a pixel changes nothing in large ones.
    """
    shown = views(images, flip=flip, shift=shift)
    total = model(shown[0]).float()
    for view in shown[1:]:
        total = total + model(view).float()
    return total / len(shown)


def views(images: Tensor, *, flip: bool, shift: bool) -> list[Tensor]:
    """The images, followed by their 0 to 5 other views."""
    shown = [images]
    if shift:
        height, width = images.shape[-2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        shown += [padded[..., :height, :width], padded[..., 2:, 2:]]
    if flip:
        shown += [view.flip(-1) for view in shown]
    return shown


def describe_views(recipe: Recipe) -> str:
    """The views that are averaged, for the log; empty if there is one."""
    chosen = []
    if recipe.eval_shift:
        chosen.append("moved by a pixel to two sides")
    if recipe.eval_flip:
        chosen.append("mirrored")
    return f"each image and the same {' and '.join(chosen)} averaged" if chosen else ""
