from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from dwsep_zoo.data.contents import checksums
from dwsep_zoo.data.decode import read_picture
from dwsep_zoo.data.listing import find_pictures
from dwsep_zoo.data.loader import BatchKey
from dwsep_zoo.data.pictures import (
    FileReader,
    ResizedCrop,
    decoded,
    eval_transform,
    longer_sides,
)
from dwsep_zoo.data.splits import Images
from dwsep_zoo.data.store import Files
from dwsep_zoo.errors import UserError


def _listed(names: list[str]) -> Images:
    return Images(names, np.arange(len(names)))


def _key(indices: list[int], epoch: int = 0, number: int = 0, seed: int = 0) -> BatchKey:
    images = torch.tensor(indices)
    return BatchKey(seed, epoch, number, 0, images, torch.full_like(images, epoch))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    image = Image.new("L", (5, 4), 200)
    image = Image.new("I;16", (5, 4), 200) if mode == "I;16" else image.convert(mode)
    image.save(path, **({"transparency": b"\x00\x10"} if mode == "P" else {}))
    picture = read_picture(path)
    assert (picture.mode, picture.size) == ("RGB", (5, 4))


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_unreadable_picture_is_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    if content is None:  # cut off in the middle
        Image.effect_noise((64, 64), 50).save(path)
        content = path.read_bytes()[:1000]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the picture .*broken\.jpg") as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"broken\.jpg"):
        next(decoded(Files(tmp_path), ["broken.jpg"], 8, "bilinear"))


def test_an_empty_file_is_found_by_its_size(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1234")
    (tmp_path / "b.jpg").touch()
    assert checksums(Files(tmp_path), ["a.jpg"]).shape == (1, 16)
    with pytest.raises(UserError, match=r"b\.jpg: the file is empty"):
        checksums(Files(tmp_path), ["a.jpg", "b.jpg"])
    (tmp_path / "c.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(UserError, match=r"c\.jpg: No such file"):
        checksums(Files(tmp_path), ["c.jpg"])


def test_find_pictures(tmp_path):
    for name in ("b.JPG", "a.png", "deep/c.webp", ".hidden.png", ".dir/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_pictures(tmp_path).names == ["a.png", "b.JPG", "deep/c.webp"]


def _decoded(root, names, size, interpolation):
    return torch.cat([*decoded(Files(root), names, size, interpolation)]).numpy()


@pytest.mark.parametrize("chunk", [1, 2, 32])  # of one picture: in two processes
def test_decoding_keeps_order_and_pixels_of_the_right_size(pictures, monkeypatch, chunk):
    monkeypatch.setattr("dwsep_zoo.data.pictures.CHUNK", chunk)
    monkeypatch.setattr("dwsep_zoo.data.pictures.CHUNKS_OF_A_WORKER", 2)
    root = pictures({"a": 3, "b": 2}, size=(8, 8))
    names = ["b/1.png", "a/0.png", "a/2.png", "b/0.png"]
    before = torch.get_rng_state()
    for name, pixels in zip(names, _decoded(root, names, 8, "bicubic"), strict=True):
        assert (pixels == np.asarray(Image.open(root / name))).all()
    assert torch.equal(torch.get_rng_state(), before)
    (root / "a/2.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot read the picture .*a/2\.png"):
        _decoded(root, names, 8, "bicubic")


def test_decoding_resizes_the_shorter_side_and_cuts_the_middle(pictures):
    root = pictures({"a": 1}, size=(40, 20))
    (pixels,) = _decoded(root, ["a/0.png"], 10, "bilinear")
    whole = Image.open(root / "a/0.png").resize((20, 10), Image.Resampling.BILINEAR)
    assert (pixels == np.asarray(whole)[:, 5:15]).all()


def test_eval_transform_looks_at_a_part(pictures):
    root = pictures({"a": 1}, size=(32, 32))
    picture = Image.open(root / "a/0.png")
    result = eval_transform(24, "bicubic", crop_pct=0.75)(picture)
    assert (result.numpy() == np.asarray(picture)[4:28, 4:28].transpose(2, 0, 1)).all()


def test_longer_sides(pictures):
    root = pictures({"small": 2}, size=(20, 32))
    pictures({"large": 1}, size=(65, 10))
    names = ["small/0.png", "small/1.png", "large/0.png"]
    assert longer_sides(Files(root), _listed(names)).tolist() == [32, 32, 65]


@pytest.fixture
def reader(pictures):
    root = pictures({"a": 6}, size=(40, 30))
    transform = ResizedCrop(auto_augment="rand-m9-mstd0.5", color_jitter=0.4).transform(
        16, "bicubic", (0.5, 0.5, 0.5)
    )
    return FileReader(
        Files(root), _listed([f"a/{i}.png" for i in range(6)]), transform, training=True
    )


def test_picture_depends_on_seed_epoch_and_place_alone(reader):
    images, labels, training, *_ = reader[_key([3, 1, 5])]
    assert training
    assert (images.shape, images.dtype) == ((3, 3, 16, 16), torch.uint8)
    assert labels.tolist() == [3, 1, 5]
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    assert torch.equal(reader[_key([1, 3], number=7)][0], images[[1, 0]])
    assert not torch.equal(reader[_key([3, 1, 5], epoch=1)][0], images)
    assert not torch.equal(reader[_key([3, 1, 5], seed=1)][0], images)


def test_reading_leaves_the_generators_alone(reader):
    random.seed(0), np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    reader[_key([0, 1])]
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_no_flip_where_there_is_none(pictures):
    """The whole area in the given ratio, without flip: nothing is left to chance."""
    root = pictures({"a": 1}, size=(16, 16))
    options = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    pixels = np.asarray(Image.open(root / "a/0.png")).transpose(2, 0, 1)
    for flip, kinds in ((False, 1), (True, 2)):
        transform = ResizedCrop(**options, flip=flip).transform(16, "bilinear", (0.5,) * 3)
        reader = FileReader(Files(root), _listed(["a/0.png"]), transform, training=True)
        results = [reader[_key([0], epoch)][0][0].numpy() for epoch in range(20)]
        assert all(
            (r == pixels).all() or (flip and (r == pixels[:, :, ::-1]).all()) for r in results
        )
        assert len({r.tobytes() for r in results}) == kinds
