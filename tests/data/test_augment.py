from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.overrides import TorchFunctionMode
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from dwsep_zoo.data.augment import (
    FLIP,
    CachedCrop,
    CropFlip,
    draw_batch,
    halves,
    middle,
    normalise,
)
from dwsep_zoo.data.effects import CROP_DRAWS, jitter
from dwsep_zoo.data.loader import BatchKey
from dwsep_zoo.data.parts import resized_at_once, resized_one_by_one, resized_parts
from dwsep_zoo.errors import UserError

N, C, H, W = 64, 3, 12, 10


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (N, C, H, W), dtype=torch.uint8)


@pytest.fixture
def draws() -> torch.Tensor:
    return torch.randint(2**31, (N, CROP_DRAWS))


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
    draws = torch.randint(2**31, (n, CROP_DRAWS))
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
    assert augment.change(images, draws, (0.5,) * C) is images
    assert augment.blank(images, draws) is images


def test_normalise_is_torchvisions(images):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    result = normalise(images, mean, std)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = TF.normalize(images / 255, list(mean), list(std))
    torch.testing.assert_close(result, expected)


def test_normalise_is_one_subtraction_and_one_product(images):
    """Bit for bit, so that a run's result does not depend on how the constants come about."""
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    shift, scale = torch.tensor(mean) * 255, (torch.tensor(std) * 255).reciprocal()
    expected = (images.float() - shift[:, None, None]) * scale[:, None, None]
    assert torch.equal(normalise(images, mean, std), expected)


class Called(TorchFunctionMode):
    """Names of the functions of torch that are called within."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__)
        return function(*args, **(kwargs or {}))


AUGMENTS = [
    CropFlip(cutout=3),
    CropFlip(padding_mode="zeros", auto_augment="trivial", erase=0.5),
    CachedCrop(24, 24, color_jitter=0.4, auto_augment="rand-m9-mstd0.5"),
]


COPYING = {"tensor", "as_tensor", "asarray", "from_numpy", "to", "cuda"}


@pytest.mark.parametrize("augment", AUGMENTS)
def test_nothing_is_copied_to_the_device(augment):
    """A copy of numbers from the host makes it wait for all that the device has still to do."""
    images = torch.randint(0, 256, (N, C, 24, 24), dtype=torch.uint8)
    draws = augment.draw(N, torch.Generator().manual_seed(0), 24)
    with Called() as called:
        augment(images, draws, (0.5,) * C, (0.25,) * C)
    assert called.names
    assert not called.names & COPYING


def test_crops_on_a_device_copy_nothing_to_it_and_do_not_wait():
    squares = torch.randint(0, 256, (N, C, 24, 24), dtype=torch.uint8)
    parts = _drawn(CachedCrop(24, 16), N)[:, :5]
    with Called() as called:
        resized_at_once(squares, parts, 16)
    assert called.names
    assert not called.names & {*COPYING, "tolist", "item", "cpu", "numpy"}


@pytest.mark.gpu
@pytest.mark.parametrize("augment", AUGMENTS)
def test_the_device_is_not_waited_for(augment):
    images = torch.randint(0, 256, (N, C, 24, 24), dtype=torch.uint8).cuda()
    draws = augment.draw(N, torch.Generator().manual_seed(0), 24).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(images, draws, (0.5,) * C, (0.25,) * C)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _drawn(crop: CachedCrop, count: int, seed: int = 0) -> torch.Tensor:
    return crop.draw(count, torch.Generator().manual_seed(seed), crop.image_size)


@pytest.fixture
def squares() -> torch.Tensor:
    return torch.randint(0, 256, (N, C, 24, 24), dtype=torch.uint8)


@pytest.mark.parametrize("resize", [resized_one_by_one, resized_at_once])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [16, 24, 40])
def test_parts_are_interpolates(resize, layout, channels, size):
    """Cut out and resized one by one in floating point; a whole number may be the next one."""
    squares = torch.randint(0, 256, (N, channels, 24, 24), dtype=torch.uint8)
    parts = _drawn(CachedCrop(24, size), N)[:, :5]
    parts[:, 2] %= 2
    result = resize(squares.to(memory_format=layout), parts, size)
    for square, part, got in zip(squares, parts.tolist(), result, strict=True):
        top, left, mirrored, height, width = part
        pixels = square[:, top : top + height, left : left + width].float()
        assert pixels.shape == (channels, height, width)
        expected = F.interpolate(pixels[None], (size, size), mode="bilinear")[0]
        difference = (got - (expected.flip(2) if mirrored else expected)).abs()
        assert difference.max() < 1.1
    assert torch.equal(
        resized_parts(squares, parts, size), resized_one_by_one(squares, parts, size)
    )


@pytest.mark.parametrize("flip", [False, True])
def test_crop_mirrors_by_its_draws(squares, flip):
    crop = CachedCrop(24, 16, flip=flip)
    draws = _drawn(crop, N)
    other = draws.clone()
    other[:, FLIP] += 1
    straight, mirrored = crop.crop(squares, draws), crop.crop(squares, other)
    assert torch.equal(straight, mirrored.flip(3) if flip else mirrored)


def test_crops_are_those_of_torchvision(squares):
    """The same distribution: means and deviations of all four numbers."""
    crop = CachedCrop(256, 224)
    draws = _drawn(crop, 20_000).double()
    own = draws[:, [0, 1, 3, 4]]
    torch.manual_seed(0)
    image = torch.empty(3, 256, 256)
    theirs = torch.tensor(
        [
            RandomResizedCrop.get_params(image, list(crop.scale), list(crop.ratio))
            for _ in range(4_000)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(own.mean(0), theirs.mean(0), atol=4, rtol=0)
    torch.testing.assert_close(own.std(0), theirs.std(0), atol=4, rtol=0)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.35, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("ratio", [(0.75, 4 / 3), (0.1, 10.0), (2.0, 3.0), (0.2, 0.5)])
def test_crops_are_inside_and_of_the_scale_and_ratio(scale, ratio):
    draws = _drawn(CachedCrop(256, 224, scale, ratio), 3_000)
    top, left, _, height, width = draws[:, :5].T
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 256
    assert min(height.min(), width.min()) >= 1
    # Rounded to whole pixels; a whole side may be the last resort, in the middle.
    last = torch.maximum(height, width) == 256
    area, shape = height * width / 256**2, width / height
    assert ((area > scale[0] * 0.97) & (area < scale[1] * 1.03) | last).all()
    assert ((shape > ratio[0] * 0.94) & (shape < ratio[1] * 1.06)).all()
    if scale[0] < 1:
        assert not last.all()
    elif ratio[0] < 1 < ratio[1]:
        assert ((height == 256) & (width == 256)).any()
    else:
        assert (last & ((top == (256 - height) // 2) & (left == (256 - width) // 2))).all()


def test_jitter_is_torchvisions():
    """In the order that is said."""
    images = torch.randint(0, 256, (N, 3, H, W)).float()
    draws = torch.randint(2**31, (N, 3))
    result = jitter(images.clone(), draws, 0.4)
    factors = 0.6 + 0.8 * draws / 2**31
    for image, (brightness, contrast, saturation), got in zip(
        images, factors.tolist(), result, strict=True
    ):
        expected = TF.adjust_brightness(image / 255, brightness)
        expected = TF.adjust_contrast(expected, contrast)
        expected = TF.adjust_saturation(expected, saturation)
        torch.testing.assert_close(got / 255, expected, atol=1e-3, rtol=0)  # its grey is rounded
    grey = images[:, :1].contiguous()
    expected = jitter(grey.repeat(1, 3, 1, 1), draws, 0.4)[:, :1]
    torch.testing.assert_close(jitter(grey, draws, 0.4), expected, atol=1e-3, rtol=0)


def test_batch_is_its_images_one_by_one(squares):
    crop = CachedCrop(24, 16, color_jitter=0.4)
    draws = _drawn(crop, N)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    whole = crop(squares, draws, mean, std)
    assert (whole.shape, whole.dtype) == ((N, C, 16, 16), torch.float32)
    assert whole.is_contiguous(memory_format=torch.channels_last)
    alone = [crop(squares[i : i + 1], draws[i : i + 1], mean, std) for i in range(N)]
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-5, rtol=1e-5)
    nhwc = squares.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(whole, crop(nhwc, draws, mean, std), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("window", "size"), [(20, 13), (12, 20), (24, 24)])
def test_middle_is_pillows(squares, interpolation, window, size):
    squares = squares // 2 + 64  # so that nothing overshoots 255, where it cuts off midway
    result = middle(squares, window, size, interpolation)
    first = (24 - window) // 2
    for square, got in zip(squares, result, strict=True):
        part = Image.fromarray(square.permute(1, 2, 0).numpy()).crop(
            (first, first, first + window, first + window)
        )
        expected = part.resize((size, size), getattr(Image.Resampling, interpolation.upper()))
        difference = got.permute(1, 2, 0).float().numpy() - np.asarray(expected, dtype=np.float32)
        assert np.abs(difference).max() <= 1  # it rounds between columns and rows


def _key(indices: list[int], epoch: int, **key) -> BatchKey:
    images = torch.tensor(indices)
    return BatchKey(**{"seed": 0, "number": 0, "rank": 0, **key}, epoch=epoch, indices=images,
                    rounds=torch.full_like(images, epoch))  # fmt: skip


@pytest.mark.parametrize(
    "augment", [CropFlip(flip="alternate"), CachedCrop(9, 8, flip="alternate")]
)
def test_alternate_flip(augment):
    """Each image is mirrored in every other epoch, wherever in the epoch it comes."""
    order = torch.randperm(101).tolist()

    def mirrored(epoch: int, indices: list[int], **key) -> dict[int, int]:
        draws = draw_batch(_key(indices, epoch, **key), augment, num_images=101, side=8)
        return dict(zip(indices, (draws[:, 2] % 2).tolist(), strict=True))

    even = mirrored(0, order)
    assert sum(even.values()) == 50
    assert mirrored(2, sorted(order), number=3, rank=1) == even
    assert mirrored(7, order) == {i: 1 - flip for i, flip in even.items()}
    assert mirrored(0, order[:10]) == {i: even[i] for i in order[:10]}
    assert mirrored(0, order, seed=1) != even
    first = list(even.values())[:20]
    assert first not in ([0] * 20, [1] * 20)


def test_alternate_flip_leaves_the_other_draws_alone():
    key = _key(list(range(50)), epoch=3)
    alternate, independent = (
        draw_batch(key, CropFlip(flip=flip), num_images=50, side=8) for flip in ("alternate", True)
    )
    others = [0, 1, 3, 4]
    assert torch.equal(alternate[:, others], independent[:, others])


def test_alternate_flip_mirrors(images):
    augment = CropFlip(crop_padding=0, flip="alternate")
    key = _key(list(range(N)), epoch=1)
    result = augment.crop_flip(images, draw_batch(key, augment, num_images=N, side=W))
    for image, half, got in zip(images, halves(0, N), result, strict=True):
        assert torch.equal(got, image if half else image.flip(2))


def test_padding_larger_than_the_image():
    with pytest.raises(UserError, match="mirrors more than the whole image of 8 pixels"):
        CropFlip(crop_padding=8).check(image_size=8)
