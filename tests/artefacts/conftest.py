"""A network of six classes, and pictures of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dwsep_zoo import create_model
from dwsep_zoo.hub import save_pretrained

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 200, 60),
    "blue": (40, 60, 210),
    "grey": (128, 128, 128),
    "pink": (240, 130, 190),
    "white": (250, 250, 250),
}
SIDE = 32


def picture(colour, seed, size=(SIDE, SIDE)):
    noise = np.random.default_rng(seed).normal(0, 40, (*size, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Five pictures of each colour, in folders whose names differ in case and order."""
    root = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        (root / name.title()).mkdir()
        for number in range(5):
            picture(colour, number).save(root / name.title() / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A folder of a network whose norms know the pictures' statistics."""
    torch.manual_seed(0)
    model = create_model("mobilenet_v1_shallow", width_mult=0.25, num_classes=6, output_stride=16)
    model.default_cfg = {
        **model.default_cfg,
        "input_size": (3, SIDE, SIDE),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.25, 0.3),
        "crop_pct": 1.0,
    }
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    for _ in range(20):
        model(torch.randn(16, 3, SIDE, SIDE))
    folder = tmp_path_factory.mktemp("saved") / "network"
    save_pretrained(model.eval(), folder, list(COLOURS))
    return folder
