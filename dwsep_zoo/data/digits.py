"""The handwritten digits of scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dwsep_zoo.data.memory import check_memory
from dwsep_zoo.data.source import CROP_FLIP
from dwsep_zoo.data.splits import Images, Labelled
from dwsep_zoo.schema.data_settings import DataSettings

OWN_SIDE = 8  # pixels


class Digits:
    """1,797 grey images of 8 x 8 pixels with values 0-16 (UCI, E. Alpaydin and C. Kaynak, 1998).

    They are part of scikit-learn, so nothing is downloaded, and come without splits. They are
    scaled bilinearly to ``image_size``; ``None``: their own size.
    """

    options = frozenset({"image_size", "test_fraction"}) | CROP_FLIP

    def __init__(self, settings: DataSettings, data_dir: Path):
        self.image_size = settings.image_size or OWN_SIDE
        check_memory(1797, self.image_size, bytes_per_pixel=5)  # float32 and uint8

    def prepare(self) -> None:
        """There is nothing to do."""

    def load(self) -> Labelled:
        """Read and scale the images."""
        from sklearn.datasets import load_digits  # takes a second to import

        digits = load_digits()
        grey = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
        scaled = F.interpolate(grey, size=self.image_size, mode="bilinear").round().byte()
        names = [str(i) for i in range(len(scaled))]
        images = Images(names, digits.target.astype(np.int64), scaled.permute(0, 2, 3, 1))
        class_names = [str(digit) for digit in range(10)]
        return Labelled(class_names, {"train": images}, interpolation="bilinear")
