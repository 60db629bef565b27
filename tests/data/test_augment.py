from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as TF

from dwsep_zoo.data.augment import DRAWS, CropFlip, normalise
from dwsep_zoo.errors import UserError

N, C, H, W = 64, 3, 12, 10


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (N, C, H, W), dtype=torch.uint8)


@pytest.fixture
def draws() -> torch.Tensor:
    return torch.randint(2**31, (N, DRAWS))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("mode", "numpys"), [("reflect", "reflect"), ("zeros", "constant")])
@pytest.mark.parametrize("pad", [0, 1, 4])
def test_crop_and_flip_of_each_image(images, draws, flip, mode, numpys, pad):
    """Numpy's padding and slicing, picture by picture."""
    result = CropFlip(pad, mode, flip).crop_flip(images, draws)
    for image, draw, got in zip(images.numpy(), draws.numpy(), result.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode=numpys)
        row, col = draw[0] % (2 * pad + 1), draw[1] % (2 * pad + 1)
        expected = padded[:, row : row + H, col : col + W]
        if flip and draw[2] % 2:
            expected = expected[:, :, ::-1]
        assert (got == expected).all()


def test_memory_format_does_not_matter(images, draws):
    augment = CropFlip()
    other = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment.crop_flip(images, draws), augment.crop_flip(other, draws))


def test_every_shift_and_flip_occurs():
    n = 20_000
    image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3).expand(n, -1, -1, -1)
    draws = torch.randint(2**31, (n, DRAWS))
    centre = CropFlip(1, "zeros", flip=False).crop_flip(image, draws)[:, 0, 1, 1]
    counts = torch.bincount(centre, minlength=9) / n
    assert torch.allclose(counts, torch.full((9,), 1 / 9), atol=0.01)
    mirrored = CropFlip(0, flip=True).crop_flip(image, draws)[:, 0, 1, 0] == 5
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_blanks_a_square(draws, side):
    images = torch.ones(N, C, H, W)
    result = CropFlip(cutout=side).cut_out(images.clone(), draws)
    for draw, got in zip(draws.tolist(), result, strict=True):
        expected = torch.ones(C, H, W)
        top, left = draw[3] % H - side // 2, draw[4] % W - side // 2
        expected[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
        assert torch.equal(got, expected)


def test_nothing_to_do(images, draws):
    augment = CropFlip(crop_padding=0, flip=False)
    assert augment.crop_flip(images, draws) is images
    assert augment.cut_out(images, draws) is images


def test_normalise_is_torchvisions(images):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    result = normalise(images, mean, std)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = TF.normalize(images / 255, list(mean), list(std))
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_padding": -1}, "crop_padding must be a whole number from 0 up; got -1"),
        ({"cutout": 0.5}, "cutout must be a whole number"),
        ({"padding_mode": "zero"}, "did you mean 'zeros'"),
        ({"crop_padding": 8}, "mirrors more than the whole image of 8 pixels"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(UserError, match=message):
        CropFlip(**options).check(image_size=8)
