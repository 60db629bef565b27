"""Files as their bytes: caches and fingerprints that notice changes, and unreadable pictures."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from data_helpers import batches, load_data
from PIL import Image

from dwsep_zoo.data import contents
from dwsep_zoo.data.contents import checksums
from dwsep_zoo.data.store import Files
from dwsep_zoo.errors import UserError


@pytest.fixture
def bitmaps(tmp_path):
    """Forty pictures of equal size in bytes, two classes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "bitmaps"
    for i in range(40):
        path = root / "ab"[i % 2] / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return root


def _change(path, *, keep_time: bool) -> None:
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-16 * 16 * 3 :] = bytes(16 * 16 * 3)
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("options", [{"in_memory": True}, {"cache": True, "image_size": 14}])
@pytest.mark.parametrize("keep_time", [False, True])
def test_changed_pictures_of_equal_size_are_noticed(bitmaps, options, keep_time):
    data = load_data("folder", root=str(bitmaps), batch_size=2, **options)
    before = torch.cat([images for images, _ in batches(data, "test")])
    for name in data.splits["test"].names:
        _change(bitmaps / name, keep_time=keep_time)
    changed = load_data("folder", root=str(bitmaps), batch_size=2, **options)
    after = torch.cat([images for images, _ in batches(changed, "test")])
    assert before.std(dim=(1, 2, 3)).min() > 0.1
    assert after.std(dim=(1, 2, 3)).max() < before.std(dim=(1, 2, 3)).min()
    assert changed.fingerprint != data.fingerprint


def test_a_copy_with_other_times_is_the_same(bitmaps, tmp_path):
    first = load_data("folder", root=str(bitmaps)).fingerprint
    copy = shutil.copytree(bitmaps, tmp_path / "copy", copy_function=shutil.copyfile)
    assert load_data("folder", root=str(copy)).fingerprint == first


@pytest.mark.parametrize(("verify", "noticed"), [(False, False), (True, True)])
def test_checksums_are_kept_until_a_file_is_written(
    bitmaps, tmp_path, monkeypatch, verify, noticed
):
    monkeypatch.setattr(contents, "KEPT_FROM", 10)
    read = []

    class Counted(Files):
        def content(self, name):
            read.append(name)
            return super().content(name)

    names = sorted(path.relative_to(bitmaps).as_posix() for path in bitmaps.glob("*/*"))
    kept = [tmp_path / "file" / "x.npy", tmp_path / "kept" / "x.npy"]
    kept[0].parent.touch()
    first = checksums(Counted(bitmaps), names, kept)
    assert len({row.tobytes() for row in first}) == 40 == len(read)
    assert (checksums(Counted(bitmaps), names, kept) == first).all()
    assert len(read) == 40
    _change(bitmaps / names[3], keep_time=False)
    second = checksums(Counted(bitmaps), names, kept)
    assert np.flatnonzero((second != first).any(1)).tolist() == [3]
    assert len(read) == 41
    _change(bitmaps / names[4], keep_time=True)
    third = checksums(Counted(bitmaps), names, kept, verify=verify)
    assert (third != second).any() == noticed
    kept[1].write_bytes(b"damaged")
    assert (checksums(Counted(bitmaps), names, kept)[4] != second[4]).any()


@pytest.mark.parametrize("options", [{"in_memory": True}, {"in_memory": False, "num_workers": 0}])
def test_unreadable_pictures_are_left_out_and_listed(bitmaps, tmp_path, caplog, options):
    options = {"root": str(bitmaps), "batch_size": 4, "image_size": 16, **options}
    whole = load_data("folder", **options)
    spoilt = [part.names[0] for part in whole.splits.values()]
    for name, content in zip(spoilt, (b"", b"no picture", None), strict=True):
        path = bitmaps / name
        path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(UserError, match="cannot read the picture"):
        load_data("folder", **options)
    data = load_data("folder", on_error="skip", **options)
    assert sorted(data.skipped) == sorted(spoilt)
    assert "3 of 40 pictures are left out" in caplog.text
    assert data.describe()["skipped"] == 3
    left = [name for part in data.splits.values() for name in part.names]
    assert sorted(left + spoilt) == sorted(
        p.relative_to(bitmaps).as_posix() for p in bitmaps.glob("*/*")
    )
    for split in ("train", "val", "test"):
        batches(data, split)
    data.list_skipped(tmp_path)
    lines = (tmp_path / "skipped.txt").read_text().splitlines()
    assert all(any(name in line for line in lines) for name in spoilt)
    assert len(lines) == 3


def test_nothing_is_listed_where_nothing_is_left_out(bitmaps, tmp_path):
    whole = load_data("folder", root=str(bitmaps))
    data = load_data("folder", root=str(bitmaps), on_error="skip")
    assert data.fingerprint == whole.fingerprint
    data.list_skipped(tmp_path)
    assert not (tmp_path / "skipped.txt").exists()


def test_a_class_that_loses_all_its_pictures_is_an_error(bitmaps):
    for path in (bitmaps / "b").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"^no picture of the class 'b' in train can be read; .*b/"):
        load_data("folder", root=str(bitmaps), on_error="skip")
