"""Pictures with what a network says about them, and where it looked."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dwsep_zoo.artefacts.artefact import Artefact, Prediction
from dwsep_zoo.artefacts.preprocess import MODES, Picture, normalised, opened
from dwsep_zoo.files import atomic_write
from dwsep_zoo.models import ConvNet

LEAST_SIDE = 224  # of a saved picture, so that its text can be read
LINE = 16  # pixels


def save_annotated(
    artefact: Artefact, picture: Picture, name: str, found: Prediction, folder: Path, cam: bool
) -> Path:
    """Write a picture above the classes that were found, as PNG; returns its path.

    Args:
        artefact: that found them.
        picture: as it was given.
        name: of the picture.
        found: the classes.
        folder: made if necessary.
        cam: show the network's image with the class-activation map instead of the whole picture.
    """
    image = heat(artefact, picture) if cam else opened(picture)
    scale = max(1.0, LEAST_SIDE / min(image.size))
    size = tuple(round(side * scale) for side in image.size)
    image = image.resize((size[0], size[1]), Image.Resampling.NEAREST)
    lines = [
        f"{p:.1%} {label}" for label, p in zip(found.classes, found.probabilities, strict=True)
    ]
    page = Image.new("RGB", (image.width, image.height + LINE * len(lines) + 6), "white")
    page.paste(image)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    for number, line in enumerate(lines):
        draw.text((4, image.height + 3 + number * LINE), line, "black", font)
    folder.mkdir(parents=True, exist_ok=True)
    path = _free(folder, re.sub(r"[^\w.-]+", "_", Path(name).stem)[-100:] or "picture")
    file = io.BytesIO()
    page.save(file, "png")
    atomic_write(path, file.getvalue())
    return path


def _free(folder: Path, stem: str) -> Path:
    path, number = folder / f"{stem}.png", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path


def heat(artefact: Artefact, picture: Picture) -> Image.Image:
    """The image that the network gets, with its class-activation map in red."""
    assert artefact.model is not None, "an exported file has no activations"
    pixels = artefact._read(picture)[None]
    found = grad_cam(artefact.model, normalised(pixels, artefact.about))
    grey = np.array(opened_pixels(pixels[0])).astype(float)
    red = np.array([255.0, 40.0, 0.0])
    share = 0.6 * found[..., None].numpy()
    return Image.fromarray((grey * (1 - share) + red * share).round().astype(np.uint8))


def opened_pixels(pixels: Tensor) -> Image.Image:
    """A picture of (C, H, W) uint8."""
    array = pixels.permute(1, 2, 0).numpy()
    mode = MODES[array.shape[2]]
    return Image.fromarray(array[..., 0] if mode == "L" else array).convert("RGB")


def grad_cam(model: ConvNet, image: Tensor, output: int | None = None) -> Tensor:
    """Where the evidence for a class lies: (H, W) of 0-1, Selvaraju et al. 2017, equations 1 and 2.

    Args:
        model: in evaluation mode.
        image: (1, C, H, W).
        output: the class; ``None``: the most probable.
    """
    with torch.enable_grad():
        features = model.forward_features(image).detach().requires_grad_()
        logits = model.forward_head(features)[0]
        logits[logits.argmax() if output is None else output].backward()
    assert features.grad is not None
    weights = features.grad.mean((2, 3), keepdim=True)
    found = F.relu((weights * features.detach()).sum(1, keepdim=True))
    found = F.interpolate(found, image.shape[2:], mode="bilinear", align_corners=False)[0, 0]
    largest = found.max()
    return found / largest if largest > 0 else found
