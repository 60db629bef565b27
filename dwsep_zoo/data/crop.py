"""A random crop of a picture, resized: timm's, computed faster.

PyTorch resizes with the processor's vector instructions and weights of 16 bits; few values differ
from Pillow's, by at most 4 of 255 levels (``tests/data/test_crop.py``). A JPEG whose crop has many
times the wanted pixels is decoded at 1/2, 1/4 or 1/8 of its size, as Pillow's own thumbnails are;
see :data:`GAP`. Evaluation uses neither.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from timm.data.transforms import RandomResizedCropAndInterpolation

GAP = 2
"""A crop is decoded at a part of its size if it then has this many times the wanted sides."""
SCALES = (8, 4, 2)  # of libjpeg
VECTORISED = ("bilinear", "bicubic")

Size = tuple[int, int]
Cropped = Image.Image | Tensor
"""A picture of Pillow, or (C, H, W) uint8."""
Reduction = Callable[[Size], int]
"""Width and height of a picture -> how many times smaller it may be decoded."""


class Read(Protocol):
    """Decodes a picture."""

    def __call__(self, reduction: Reduction | None = None) -> Image.Image: ...


class Crop:
    """The first step of timm's transforms of training pictures.

    It draws the same random numbers in the same order.

    Args:
        drawn: timm's step.
        modes: of its resizing; of several, one is drawn for each picture.
        to_tensor: whether what follows takes tensors as well as it takes pictures of Pillow.
    """

    def __init__(
        self, drawn: RandomResizedCropAndInterpolation, modes: Sequence[str], *, to_tensor: bool
    ):
        self.drawn, self.to_tensor = drawn, to_tensor
        self.height, self.width = drawn.size
        self.modes = modes

    def __call__(self, read: Read) -> Cropped:
        """Decode a picture, or as much of it as is needed, and cut a random part out."""
        drawn: list[tuple[Size, tuple[int, int, int, int]]] = []

        def draw(size: Size) -> int:
            picture = torch.empty((1, size[1], size[0]), device="meta")
            top, left, height, width = self.drawn.get_params(
                picture, self.drawn.scale, self.drawn.ratio
            )
            drawn.append((size, (left, top, left + width, top + height)))
            gap = min(width / self.width, height / self.height) / GAP
            return next((scale for scale in SCALES if gap >= scale), 1)

        picture = read(draw)
        if not drawn:  # not a JPEG
            draw(picture.size)
        size, box = drawn[0]
        if picture.size != size:
            factors = [a / b for a, b in zip(picture.size, size, strict=True)] * 2
            box = tuple(round(a * b) for a, b in zip(box, factors, strict=True))  # type: ignore[assignment]
        mode = random.choice(self.modes) if len(self.modes) > 1 else self.modes[0]
        return self._resized(picture.crop(box), mode)

    def _resized(self, part: Image.Image, mode: str) -> Cropped:
        wanted = (self.width, self.height)
        if mode not in VECTORISED:
            return part.resize(wanted, Image.Resampling[mode.upper()])
        pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1)[None]
        found = torch.nn.functional.interpolate(pixels, wanted[::-1], mode=mode, antialias=True)
        if self.to_tensor:
            return found[0]
        return Image.fromarray(found[0].permute(1, 2, 0).contiguous().numpy())


def split_off_crop(
    transform: Callable[[Image.Image], Tensor],
) -> tuple[Crop | None, Callable[[Cropped], Tensor]]:
    """Take the random crop off the beginning of a transform; the crop is ``None`` without one."""
    from timm.data.transforms import (
        MaybePILToTensor,
        RandomResizedCropAndInterpolation,
        interp_mode_to_str,
    )
    from torchvision.transforms import Compose, RandomHorizontalFlip

    first, *rest = _steps(transform)
    if not isinstance(first, RandomResizedCropAndInterpolation):
        return None, transform  # type: ignore[return-value]
    exact = all(isinstance(step, RandomHorizontalFlip | MaybePILToTensor) for step in rest)
    given = first.interpolation
    several = given if isinstance(given, tuple | list) else [given]
    modes = [interp_mode_to_str(mode) for mode in several]
    return Crop(first, modes, to_tensor=exact), Compose(rest)


def _steps(transform: object) -> list[object]:
    """The steps of a transform and of those inside it."""
    inner = getattr(transform, "transforms", None)
    return [transform] if inner is None else [one for step in inner for one in _steps(step)]
