"""The handwritten digits of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dwsep_zoo.data.module import ImageData
from dwsep_zoo.data.options import at_least
from dwsep_zoo.data.splits import Images, Labelled


class Digits:
    """1,797 grey images of 8 x 8 pixels with values 0-16 (UCI, E. Alpaydin and C. Kaynak, 1998).

    They are part of scikit-learn, so nothing is downloaded, and come in one piece.

    Args:
        image_size: side to which they are scaled, bilinearly.
    """

    def __init__(self, image_size: int):
        self.image_size = image_size

    def prepare(self) -> None:
        """There is nothing to do."""

    def load(self) -> Labelled:
        from sklearn.datasets import load_digits  # takes a second to import

        digits = load_digits()
        grey = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
        scaled = F.interpolate(grey, size=self.image_size, mode="bilinear").round().byte()
        names = [str(i) for i in range(len(scaled))]
        images = Images(names, digits.target.astype(np.int64), scaled.permute(0, 2, 3, 1))
        return Labelled([str(digit) for digit in range(10)], {"train": images})


def create_digits(
    *,
    seed: int,
    data_dir: str,
    batch_size: int = 64,
    image_size: int = 32,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    augment: Mapping[str, Any] | None = None,
    subset: Mapping[str, Any] | None = None,
) -> ImageData:
    """``data=digits``. By default shifted, but not mirrored; nothing lies in ``data_dir``."""
    at_least("data.image_size", image_size, 1)
    default = {"padding_mode": "zeros", "flip": False}
    return ImageData(
        "digits",
        Digits(image_size),
        seed=seed,
        batch_size=batch_size,
        image_size=image_size,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        split_seed=split_seed,
        augment={**default, **(augment or {})},
        subset=subset,
        interpolation="bilinear",
    )
