"""Prediction reads pictures as training's evaluation does."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dwsep_zoo.artefacts.preprocess import pixel_reader
from dwsep_zoo.artefacts.sources import decoded, pictures_in
from dwsep_zoo.data.decode import read_picture
from dwsep_zoo.data.pictures import eval_transform
from dwsep_zoo.errors import UserError


@pytest.mark.parametrize(
    ("kind", "background"),
    [("rgb", None), ("rotated", None), ("deep", None), ("clear", None), ("clear", "#204060"),
     ("thin", None)],
)  # fmt: skip
def test_the_reader_is_that_of_the_data(tmp_path, kind, background):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (20, 30, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6 if kind == "rotated" else 1
    if kind == "deep":
        image = Image.fromarray(rng.integers(0, 65536, (20, 30), dtype=np.uint16))
    elif kind == "thin":
        image = image.resize((900, 3))
    elif kind != "clear":
        image = image.convert("RGB")
    path = tmp_path / "x.png"
    image.save(path, exif=exif)
    about = SimpleNamespace(
        in_chans=3, image_size=16, interpolation="bicubic", crop_pct=0.875,
        background=background,
    )  # fmt: skip
    known = read_picture(path, background=background or "white")
    read, expected = pixel_reader(about), eval_transform(16, "bicubic", 0.875)(known)
    for picture in (path, Image.open(path), partial(decoded, path.read_bytes(), "it")):
        assert torch.equal(read(picture), torch.as_tensor(expected))


def test_values_that_are_not_finite_are_refused_here_too(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"^standard input: it has values that are not finite"):
        decoded((tmp_path / "x.tif").read_bytes(), "standard input")


def test_what_a_folder_has_besides_pictures_is_said(tmp_path, caplog):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jfif", "jpeg")
    (tmp_path / "b.heic").touch()
    assert pictures_in([str(tmp_path)]) == [str(tmp_path / "a.jfif")]
    assert "1 (1 .heic)" in caplog.text
