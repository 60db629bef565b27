"""The fast random crop against timm's own."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from dwsep_zoo.data.crop import split_off_crop
from dwsep_zoo.data.pictures import ResizedCrop
from dwsep_zoo.data.store import Files


def _photo(path, size, **options):
    """Smooth shapes with some noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.integers(-10, 11, smooth.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90, **options)


def _seed(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


GREY = (0.5, 0.5, 0.5)


def _difference(tmp_path, name, seeds=20, side=48, interpolation="bicubic", **options):
    augment = ResizedCrop(interpolation=interpolation, **options)
    transform = augment.transform(side, "bilinear", GREY)
    crop, rest = split_off_crop(transform)
    store, found = Files(tmp_path), []
    for seed in range(seeds):
        _seed(seed)
        expected = torch.as_tensor(transform(store.read(name)))
        _seed(seed)
        result = torch.as_tensor(rest(crop(lambda reduction=None: store.read(name, reduction))))
        assert result.shape == expected.shape == (3, side, side)
        assert result.dtype == expected.dtype == torch.uint8
        found.append((result.int() - expected.int()).abs())
    return torch.stack(found).float()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_pixels_are_those_of_timm(tmp_path, name, interpolation):
    _photo(tmp_path / name, (110, 84))
    different = _difference(tmp_path, name, interpolation=interpolation)
    assert different.max() <= (4 if interpolation in ("bicubic", "bilinear") else 0)
    assert different.mean() <= 0.05


def test_what_follows_draws_the_same_numbers(tmp_path):
    _photo(tmp_path / "x.png", (110, 84))
    different = _difference(tmp_path, "x.png", auto_augment="rand-m9-mstd0.5", color_jitter=0.4)
    assert different.mean() <= 1  # some colour operations make a small difference larger


@pytest.mark.parametrize("jitter", [None, 0.4])
def test_a_random_interpolation_is_the_one_that_timm_draws(tmp_path, jitter):
    _photo(tmp_path / "x.png", (110, 84))
    different = _difference(tmp_path, "x.png", interpolation="random", color_jitter=jitter)
    assert different.max() <= (4 if jitter is None else 12)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(tmp_path, orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    _photo(tmp_path / "x.jpg", (900, 620), exif=exif)
    different = _difference(tmp_path, "x.jpg", scale=(0.2, 1.0), seeds=8)
    assert 0 < different.mean() < 2
    decoded = []
    draft = Image.Image.crop
    monkeypatch.setattr(
        Image.Image, "crop", lambda self, box: decoded.append(self.size) or draft(self, box)
    )
    crop, _ = split_off_crop(ResizedCrop(scale=(0.9, 1.0)).transform(48, "bicubic", GREY))
    crop(lambda reduction=None: Files(tmp_path).read("x.jpg", reduction))
    sides = (225, 155)  # of 48 pixels twice, not three times
    assert decoded == [sides if orientation < 5 else sides[::-1]]


def test_other_transforms_stay_what_they_are():
    assert split_off_crop(len) == (None, len)
