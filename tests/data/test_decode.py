"""Pictures of every kind as RGB of 8 bits; Pillow and NumPy are the references."""

from __future__ import annotations

import resource
import struct

import numpy as np
import pytest
import torch
from data_helpers import batches, data_settings, load_data
from PIL import Image, ImageOps
from timm.data import create_transform

from dwsep_zoo.data import create_data
from dwsep_zoo.data.decode import as_rgb, read_picture
from dwsep_zoo.data.pack import pack
from dwsep_zoo.data.pictures import ResizedCrop, eval_transform
from dwsep_zoo.errors import UserError

RAMP = np.linspace(0, 1, 12).reshape(3, 4)


def _pixels(path) -> np.ndarray:
    return np.asarray(read_picture(path))


@pytest.mark.parametrize(
    ("suffix", "top", "dtype"),
    [
        ("png", 65535, np.uint16),
        ("tif", 65535, np.uint16),
        ("pgm", 65535, np.uint16),
        ("jp2", 65535, np.uint16),
        ("tif", 2**31 - 1, np.int32),
        ("tif", 1, np.float32),
        ("tif", 255, np.float32),
        ("pfm", 1, np.float32),
    ],
)
def test_deep_grey_is_scaled_by_its_range(tmp_path, suffix, top, dtype):
    path = tmp_path / f"x.{suffix}"
    values = (RAMP * top).astype(dtype)
    if suffix == "pgm":
        path.write_bytes(b"P5 4 3 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    expected = np.rint(values.astype(float) * 255 / top)
    assert (_pixels(path) == expected[..., None]).all()


def _tiff(pixels: bytes, bits: int, sample_format: int, photometric: int) -> bytes:
    """A grey TIFF of 4 x 3 pixels."""
    tags = {256: 4, 257: 3, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 3, 339: sample_format}
    tags |= {273: 8 + 2 + 12 * 10 + 4, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


@pytest.mark.parametrize(
    ("bits", "signed", "photometric"),
    [(12, False, 1), (16, False, 0), (16, False, 1), (16, True, 1), (32, False, 1)],
)
def test_grey_tiff_of_all_kinds(tmp_path, bits, signed, photometric):
    top = 2 ** (bits - signed) - 1
    values = (RAMP * top).astype(np.int64)
    pixels = values.astype(f"<u{bits // 8}").tobytes()
    if bits == 12:  # two numbers in three bytes
        pairs = values.reshape(-1, 2)
        packed = [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255]
        pixels = np.stack(packed, 1).astype(np.uint8).tobytes()
    (tmp_path / "x.tif").write_bytes(_tiff(pixels, bits, 1 + signed, photometric))
    expected = np.rint(values * 255 / top)
    expected = expected if photometric else 255 - expected
    assert (_pixels(tmp_path / "x.tif") == expected[..., None]).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "not finite"),
        (np.inf, "not finite"),
        (-np.inf, "not finite"),
        (-1.0, "from -1 to 1"),
        (300.0, "to 300; those of its kind are in 0 ... 255"),
    ],
)
def test_values_that_are_no_brightness_are_refused(tmp_path, value, message):
    values = RAMP.astype(np.float32)
    values[1, 1] = value
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=rf"^cannot read the picture .*x\.tif: .*{message}"):
        read_picture(tmp_path / "x.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_set_upright(tmp_path, suffix, orientation):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (5, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    image.save(path, exif=exif)
    with Image.open(path) as saved:
        expected = ImageOps.exif_transpose(saved)
        assert (_pixels(path) == np.asarray(expected.convert("RGB"))).all()
    assert expected.size == ((8, 5) if orientation < 5 else (5, 8))


def test_damaged_metadata_leave_the_pixels(tmp_path):
    image = Image.fromarray(np.full((5, 8, 3), 90, dtype=np.uint8))
    image.save(tmp_path / "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(9))
    assert (_pixels(tmp_path / "x.png") == 90).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L", "I;16"])
def test_white_shows_through(mode):
    """Two pixels of the same dark colour, of which the first is transparent."""
    if mode in ("RGB", "L", "I;16"):
        clear = {"RGB": (10, 10, 10), "L": 10, "I;16": 10 * 257}[mode]
        pixels = np.array([[10, 20]])
        shape = {
            "RGB": np.repeat(pixels[..., None], 3, 2).astype(np.uint8),
            "L": pixels.astype(np.uint8),
        }
        image = Image.fromarray(shape.get(mode, (pixels * 257).astype(np.uint16)))
        image.info["transparency"] = clear
        expected = [255, 20]
    elif mode in ("P", "PA"):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 10, 10, 20, 20, 20])
        image.putdata([0, 1])
        image.info["transparency"] = b"\0\xff"
        if mode == "PA":
            image = image.convert("RGBA").convert("PA")
        expected = [255, 20]
    else:
        image = Image.new(mode, (2, 1), (10, 10, 10, 255)[-len(mode) :])
        image.putpixel((0, 0), (10, 10, 10, 0)[-len(mode) :])
        expected = [255, 10]
    assert np.asarray(as_rgb(image))[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_ordinary_pictures_keep_their_bits(tmp_path, suffix):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (33, 40, 3), dtype=np.uint8)).save(
        tmp_path / f"x.{suffix}"
    )
    with Image.open(tmp_path / f"x.{suffix}") as image:
        assert (_pixels(tmp_path / f"x.{suffix}") == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("size", [(8, 300), (301, 9), (64, 1500), (700, 31)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_long_pictures_have_the_pixels_of_the_whole(size, interpolation):
    """Values that no overshoot clips; Pillow's own order of its two steps rounds differently."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(90, 166, (size[1], size[0], 3), dtype=np.uint8))
    whole = create_transform(28, interpolation=interpolation, crop_pct=0.875, use_prefetcher=True)
    expected = torch.as_tensor(whole(picture)).int()
    found = eval_transform(28, interpolation, 0.875)(picture)
    assert (found.dtype, found.shape) == (torch.uint8, (3, 28, 28))
    assert (found.int() - expected).abs().max() <= 2


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1)])
def test_a_thin_picture_takes_little_memory(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    picture = Image.new("RGB", size, (10, 20, 30))
    found = eval_transform(224, "bicubic", 0.875)(picture)
    assert [set(channel.flatten().tolist()) for channel in found] == [{10}, {20}, {30}]
    assert ResizedCrop().transform(224, "bicubic", (0.5, 0.5, 0.5))(picture).shape == (3, 224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_background_through_files_maps_and_shards(tmp_path, mode):
    root = tmp_path / "pictures"
    for i in range(12):
        picture = Image.new("RGBA", (16, 16), (9, 9, 9, 255))
        picture.paste((255, 0, 0, 0), (0, 0, 16, 8))  # hidden below
        if mode == "I;16":
            grey = np.full((16, 16), 9 * 257, dtype=np.uint16)
            grey[:8] = 5
            picture = Image.fromarray(grey)
        else:
            picture = picture.quantize() if mode == "P" else picture.convert(mode)
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, **({"transparency": 5} if mode == "I;16" else {}))
    settings = data_settings("folder", root=str(root))
    pack(create_data(settings, seed=0, data_dir=tmp_path), tmp_path / "packed", 10**6)
    options = {"image_size": 16, "crop_pct": 1.0, "background": "#204060", "mean": [0] * 3,
               "std": [1] * 3, "num_workers": 0, "data_dir": tmp_path}  # fmt: skip
    for own in (
        {"root": str(root), "in_memory": False},
        {"root": str(root), "in_memory": True},
        {"root": str(root), "cache": True},
        {"name": "webdataset", "root": str(tmp_path / "packed"), "in_memory": False},
    ):
        data = load_data(**{"name": "folder", **options, **own})
        for images, _ in batches(data, "test"):
            pixels = (images * 255).round().int()
            assert (pixels[:, :, 12] == 9).all()
            assert pixels[:, :, 3, 3].tolist() == [[0x20, 0x40, 0x60]] * len(images)


@pytest.mark.parametrize("background", ["whitish", "#12", "#11223344"])
def test_what_is_no_colour(background, tmp_path):
    with pytest.raises(
        UserError, match=r"data\.background must be a colour, such as white, black or"
    ):
        load_data("folder", root=str(tmp_path), background=background)
