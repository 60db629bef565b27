"""From a picture to what a network takes, as its training's evaluation did it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dwsep_zoo.data.augment import normalise
from dwsep_zoo.data.decode import WHITE, as_rgb, read_picture
from dwsep_zoo.data.pictures import eval_transform
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.artefact import Description

MODES = {1: "L", 3: "RGB"}
Picture = str | Path | Image.Image | np.ndarray[Any, Any] | Callable[[], Image.Image]
"""A file, a picture of Pillow, an array of uint8, (H, W) or (H, W, C), or what gets a picture."""


def pixel_reader(about: Description) -> Callable[[Picture], Tensor]:
    """Make the function from a picture to ``(C, image_size, image_size)`` uint8.

    The shorter side is resized to ``image_size / crop_pct`` and the middle is cut out. A picture of
    the right size, of data that are not cropped, keeps its pixels.

    Raises:
        UserError: for a number of channels that no picture has.
    """
    if about.in_chans not in MODES:
        raise UserError(f"a network for {about.in_chans} channels cannot take pictures")
    mode, side = MODES[about.in_chans], (about.image_size, about.image_size)
    transform = eval_transform(about.image_size, about.interpolation, about.crop_pct)
    background = about.background or WHITE

    def read(picture: Picture) -> Tensor:
        image = opened(picture, background)
        if image.mode != mode:
            image = image.convert(mode)
        if image.size == side and about.crop_pct == 1:
            pixels = torch.from_numpy(np.array(image))
            return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        return torch.as_tensor(transform(image))

    return read


def opened(picture: Picture, background: str = WHITE) -> Image.Image:
    """The picture in RGB; raises UserError for what is not a picture."""
    if isinstance(picture, Image.Image):
        return as_rgb(picture, background)
    if callable(picture):
        return as_rgb(picture(), background)
    if isinstance(picture, np.ndarray):
        grey = picture.ndim == 2
        if picture.dtype != np.uint8 or not (grey or (picture.ndim == 3 and picture.shape[2] == 3)):
            raise UserError(
                f"an array of {picture.dtype} with shape {picture.shape} is not a picture; "
                "it must be uint8, (H, W) or (H, W, 3)"
            )
        return as_rgb(Image.fromarray(picture))
    return read_picture(Path(picture), background=background)


def normalised(pixels: Tensor, about: Description) -> Tensor:
    """``(N, C, H, W)`` uint8 -> float32, as the network was trained."""
    return normalise(pixels, about.mean, about.std)


def denormalised(images: Tensor, about: Description) -> Tensor:
    """The uint8 pixels of :func:`normalised`, exactly."""
    mean, std = (torch.tensor(t)[:, None, None] for t in (about.mean, about.std))
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
