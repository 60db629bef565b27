from __future__ import annotations

import numpy as np
import torch
from data_helpers import load_data
from sklearn.datasets import load_digits


def test_images_are_scikit_learns():
    given = load_data(image_size=None).source.load()
    images = given.splits["train"]
    reference = load_digits()
    assert given.class_names == list("0123456789")
    assert (images.labels == reference.target).all()
    expected = np.round(reference.images * (255 / 16))
    assert np.abs(images.pixels[..., 0].numpy() - expected).max() <= 0.5  # rounding of x.5


def test_scaled_as_torch_scales():
    pixels = load_data().source.load().splits["train"].pixels
    assert (pixels.shape, pixels.dtype) == ((1797, 32, 32, 1), torch.uint8)
    image = torch.tensor(load_digits().images[5], dtype=torch.float32)
    scaled = torch.nn.functional.interpolate(image[None, None] / 16 * 255, 32, mode="bilinear")
    torch.testing.assert_close(pixels[5, ..., 0].float(), scaled[0, 0], atol=0.51, rtol=0)
