"""Shards: packed, read, damaged, and those that other tools wrote."""

from __future__ import annotations

import io
import json
import os
import resource
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import batches, data_settings, load_data
from PIL import Image

from dwsep_zoo.data import ImageData, contents, create_data
from dwsep_zoo.data.pack import pack
from dwsep_zoo.errors import UserError

OPTIONS = {"image_size": 24, "batch_size": 4, "num_workers": 0, "in_memory": False}


@pytest.fixture
def folder(tmp_path):
    """Sixty pictures of two formats in three classes, with odd names; two of them are the same."""
    rng = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "pictures" / "abc"[i % 3] / f"{i} ü.x.{'png' if i % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "pictures/a/twin.png").write_bytes((tmp_path / "pictures/b/1 ü.x.png").read_bytes())
    return tmp_path / "pictures"


def _pack(root: Path, to: Path, shard_bytes: int = 30_000, **changes):
    settings = data_settings("folder", root=str(root), **changes)
    return pack(create_data(settings, seed=0, data_dir=to.parent / "data"), to, shard_bytes)


@pytest.fixture
def packed(folder, tmp_path) -> Path:
    _pack(folder, tmp_path / "packed")
    return tmp_path / "packed"


def test_shards_train_as_their_folder_does(folder, tmp_path):
    done = _pack(folder, tmp_path / "packed")
    one = load_data("folder", root=str(folder), **OPTIONS)
    other = load_data("webdataset", root=str(tmp_path / "packed"), **OPTIONS)
    assert other.fingerprint == one.fingerprint == done.fingerprint
    assert other.describe() == one.describe()  # a comparison takes the runs as repeats
    assert other.class_names == ["a", "b", "c"]
    assert done.shards == len(list((tmp_path / "packed").glob("*.tar"))) > 1
    for split in ("train", "val", "test"):
        for (x, y), (x_shards, y_shards) in zip(
            batches(one, split, 3), batches(other, split, 3), strict=True
        ):
            assert torch.equal(x, x_shards)
            assert torch.equal(y, y_shards)
    mapped = load_data("webdataset", root=str(tmp_path / "packed"), cache=True, image_size=24)
    assert mapped.fingerprint == one.fingerprint


def test_other_tools_read_the_archives(folder, packed):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*"))
    about = json.loads((packed / "index.json").read_text())
    seen = []
    for shard in about["shards"]:
        path = packed / shard["name"]
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            contents = [archive.extractfile(member).read() for member in members]
        assert len(members) == 2 * shard["pictures"]
        assert path.stat().st_size == shard["bytes"]
        for picture, label, *both in zip(
            members[::2], members[1::2], contents[::2], contents[1::2], strict=True
        ):
            number, dot, suffix = picture.name.partition(".")
            assert label.name == f"{number}.cls"
            name = names[int(number)]
            assert name.endswith(dot + suffix)
            assert both == [(folder / name).read_bytes(), str("abc".index(name[0])).encode()]
            seen.append(name)
    assert sorted(seen) == names


def test_an_epoch_goes_on_in_its_middle(packed):
    def loader():
        found = load_data(
            "webdataset", root=str(packed), **{**OPTIONS, "num_workers": 2}
        ).train_dataloader()
        found.batch_sampler.sampler.set_epoch(2)
        return found

    first = loader()
    whole = iter(first)
    begun = [next(whole) for _ in range(4)]
    again = loader()
    again.load_state_dict(first.state_dict())
    rest = list(whole)
    assert len(begun) + len(rest) == len(first)
    for batch, expected in zip(again, rest, strict=True):
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.labels, expected.labels)


def test_a_shard_that_is_damaged_after_it_was_found_readable(packed, tmp_path, monkeypatch):
    """``on_error=skip`` remembers which pictures it could read, as long as the shard stays."""
    monkeypatch.setattr(contents, "KEPT_FROM", 10)
    options = {**OPTIONS, "root": str(packed), "on_error": "skip", "data_dir": tmp_path / "data"}
    assert load_data("webdataset", **options).skipped == {}
    tried = []
    own = contents.problems
    monkeypatch.setattr(contents, "problems", lambda s, names: tried.append(names) or own(s, names))
    assert load_data("webdataset", **options).skipped == {}
    assert tried == [[]]
    _edit(packed)
    data = load_data("webdataset", **options)
    assert len(data.skipped) == len(list(packed.glob("*.tar")))
    assert all("was changed after it was packed" in reason for reason in data.skipped.values())
    batches(data)


def _cut(root: Path) -> None:
    os.truncate(root / "train-000000.tar", 20_000)


def _lengthen(root: Path) -> None:
    with (root / "train-000001.tar").open("ab") as file:
        file.write(bytes(512))


def _remove(root: Path) -> None:
    (root / "train-000001.tar").unlink()


def _edit(root: Path) -> None:
    for path in root.glob("*.tar"):
        content = bytearray(path.read_bytes())
        content[600:700] = bytes(100)
        path.write_bytes(content)


def _newer(root: Path) -> None:
    _rewrite(root, version=2)


def _rewrite(root: Path, **changes) -> None:
    path = root / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut, r"train-000000\.tar is cut off: it has 20,000 of "),
        (_lengthen, r"train-000001\.tar was changed after it was packed: it has "),
        (_remove, r"cannot read the shard .*train-000001\.tar: No such file"),
        (_edit, r"\.tar was changed after it was packed: the bytes of .* another checksum"),
        (_newer, r"index\.json is of version 2; this version .* reads 1"),
        (lambda root: _rewrite(root, format="x"), "is not an index of shards"),
        (lambda root: _rewrite(root, class_names=["a"]), "has the label 2, .* names 1 classes"),
        (lambda root: _rewrite(root, shards=[]), "names 0 shards, index.npz has more"),
        (lambda root: _rewrite(root, table={}), r"index\.json is damaged \('sha256'\)"),
        (lambda root: (root / "index.json").write_text("{"), r"index\.json is damaged"),
        (lambda root: (root / "index.npz").unlink(), r"index\.npz: No such file"),
        (lambda root: (root / "index.npz").write_bytes(b"x"), r"index\.npz is damaged, or of"),
        (lambda root: root.rename(f"{root}.part"), r"has not ended"),
    ],
)
def test_damaged_shards_are_one_line(packed, spoil, message):
    spoil(packed)
    place = packed if packed.exists() else f"{packed}.part"
    with pytest.raises(UserError, match=message) as error:
        batches(load_data("webdataset", root=str(place), **OPTIONS))
    assert "\n" not in str(error.value)


def test_packing_leaves_nothing_half_written(folder, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*packed.*: File too large"):
            _pack(folder, tmp_path / "packed", 10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


@pytest.mark.parametrize(
    ("to", "changes", "message"),
    [
        ("here", {}, "to=.*here exists already"),
        ("begun", {}, r"begun\.part is left of a packing that was cut off"),
        ("pictures/a/x", {}, "is among the pictures"),
        ("new", {"subset": {"images_per_class": 2}}, "not when they are packed"),
        ("here/x", {}, "cannot write .*here.*: Not a directory"),
    ],
)
def test_refused_packing(folder, tmp_path, to, changes, message):
    (tmp_path / "here").touch()
    (tmp_path / "begun.part").mkdir()
    with pytest.raises(UserError, match=message):
        _pack(folder, tmp_path / to, **changes)


def test_of_two_packings_at_once_the_first_goes_on(folder, tmp_path, monkeypatch):
    part = tmp_path / "packed.part"
    monkeypatch.setattr(ImageData, "prepare_data", lambda data: part.mkdir())
    with pytest.raises(UserError, match="another process is packing"):
        _pack(folder, tmp_path / "packed")
    assert part.is_dir()


def test_unreadable_pictures_and_classes_can_be_left_out(folder, tmp_path):
    (folder / "b" / "new.png").write_bytes(b"no picture")
    options = {"on_error": "skip", "subset": {"classes": ["a", "b"]}}
    done = _pack(folder, tmp_path / "packed", **options)
    assert (done.pictures, list(done.skipped)) == (41, ["b/new.png"])
    one = load_data("folder", root=str(folder), **OPTIONS, **options)
    other = load_data("webdataset", root=str(tmp_path / "packed"), **OPTIONS)
    assert one.fingerprint == other.fingerprint
    with pytest.raises(UserError, match="data=digits is in memory"):
        pack(create_data(data_settings(), seed=0, data_dir=tmp_path), tmp_path / "x", 10**6)


def _tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def _samples(count: int, labels: list[str], start: int = 0) -> dict[str, bytes]:
    found = {}
    for i in range(start, start + count):
        found[f"x/{i:04d}.png"] = _png(i)
        label = labels[i % len(labels)]
        json_label = json.dumps({"caption": "x", "label": label}).encode()
        found |= {f"x/{i:04d}.cls": label.encode()} if i % 2 else {f"x/{i:04d}.json": json_label}
    return found


def test_archives_without_an_index(tmp_path):
    _tar(tmp_path / "set/pets-train-000.tar", _samples(12, ["9", "10", "2"]))
    _tar(tmp_path / "set/pets-train-001.tar", _samples(12, ["9", "10", "2"], 12))
    _tar(tmp_path / "set/pets-val-000.tar", _samples(6, ["9", "10", "2"], 24))
    data = load_data("webdataset", root=str(tmp_path / "set"), mean=[0] * 3, std=[1] * 3)
    assert data.class_names == ["2", "9", "10"]
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [21, 3, 6]
    assert data.splits["test"].names[0] == "pets-val-000.tar/x/0024.png"
    ((images, labels),) = batches(data, "test")
    assert (images[:, 0, 0, 0] * 255).round().tolist() == list(range(24, 30))
    assert labels.tolist() == [1, 2, 0] * 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": _png(1)}, r"a\.png has no class; \.cls or \.json beside it must have it"),
        ({"a.json": b"{}", "a.png": _png(1)}, "a.png has no class"),
        ({"a.json": b"{", "a.png": _png(1)}, "cannot read the shard .*: Expecting property"),
        (
            {"a.image.png": _png(1), "a.mask.png": _png(2), "a.cls": b"1"},
            r"the sample a has two pictures, a\.image\.png and a\.mask\.png",
        ),
        ({"a.txt": b"x"}, "has no pictures in its 1 shards"),
        ({"a.png": _png(1), "a.cls": b"1"}, "has the single class '1'"),
    ],
)
def test_archives_that_have_no_samples(tmp_path, members, message):
    _tar(tmp_path / "x.tar", members)
    with pytest.raises(UserError, match=message):
        load_data("webdataset", root=str(tmp_path))


@pytest.mark.parametrize("where", ["in a picture", "between pictures", "in a header"])
def test_archives_that_are_cut_off(tmp_path, where):
    _tar(tmp_path / "x.tar", _samples(8, ["a", "b"]))
    with tarfile.open(tmp_path / "x.tar") as archive:
        member = archive.getmembers()[4]
    at = {"in a picture": member.offset_data + 9, "between pictures": member.offset,
          "in a header": member.offset + 100}[where]  # fmt: skip
    os.truncate(tmp_path / "x.tar", at)
    with pytest.raises(UserError, match=r"x\.tar"):
        load_data("webdataset", root=str(tmp_path))


def test_folders_that_have_no_archives(tmp_path):
    with pytest.raises(UserError, match=r"has no shards, \*\.tar; dwsep data pack"):
        load_data("webdataset", root=str(tmp_path))
    (tmp_path / "x.tar.gz").touch()
    with pytest.raises(UserError, match=r"x\.tar\.gz: compressed archives have to be unpacked"):
        load_data("webdataset", root=str(tmp_path))
    with pytest.raises(UserError, match=r"needs data\.root="):
        load_data("webdataset")


def test_memory_does_not_grow_with_the_pictures(tmp_path):
    def resident() -> int:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    for i in range(40):  # of 3 MB each
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1000, 1000), (i, i, i)).save(path)
    _pack(tmp_path / "pictures", tmp_path / "packed", 10**8)
    data = load_data("webdataset", root=str(tmp_path / "packed"), **OPTIONS)
    loader = iter(data.train_dataloader())
    next(loader)
    before, highest = resident(), 0
    for _ in loader:
        highest = max(highest, resident())
    assert highest - before < 20e6
