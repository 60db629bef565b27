"""Data sets of the library datasets, from local files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from data_helpers import batches, load_data
from PIL import Image

from dwsep_zoo.errors import UserError

datasets = pytest.importorskip("datasets")

OPTIONS = {"image_size": 16, "num_workers": 0, "in_memory": False, "mean": [0] * 3, "std": [1] * 3}


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def _png(value: int, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture = Image.new("RGB", (16, 16), (value, value, value))
    picture.paste((255, 255, 255), (0, 0, 16, 8))
    picture.save(file, "PNG", exif=exif)
    return file.getvalue()


def _set(count=30, names=("cat", "dog", "ant"), start=0):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    rows = {
        "image": [
            {"bytes": _png(start + i, 3 if i % 2 else 1), "path": None} for i in range(count)
        ],
        "label": [i % len(names) for i in range(count)],
    }
    return datasets.Dataset.from_dict(rows, datasets.Features(features))


def _saved(tmp_path, kind):
    train, test = _set(), _set(9, start=100)
    if kind == "save_to_disk":
        datasets.DatasetDict(train=train, validation=test).save_to_disk(str(tmp_path / "set"))
    else:
        (tmp_path / "set").mkdir()
        train.to_parquet(str(tmp_path / "set" / "train-00000-of-00001.parquet"))
        test.to_parquet(str(tmp_path / "set" / "validation-00000-of-00001.parquet"))
    return str(tmp_path / "set")


@pytest.mark.parametrize("kind", ["save_to_disk", "parquet"])
def test_local_sets(tmp_path, kind):
    options = {"hf": _saved(tmp_path, kind), "data_dir": tmp_path / "data"}
    data = load_data("hf", **options, **OPTIONS)
    assert data.class_names == ["cat", "dog", "ant"]
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [27, 3, 9]
    ((images, labels),) = batches(data, "test")
    dark = (images[:, 0] * 255).round()
    assert labels.tolist() == [0, 1, 2] * 3
    for i, picture in enumerate(dark):  # those that are upside down are turned
        assert (picture[0 if i % 2 else -1] == 100 + i).all()
        assert (picture[-1 if i % 2 else 0] == 255).all()
    again = load_data("hf", **options, **{**OPTIONS, "num_workers": 2})
    assert again.fingerprint == data.fingerprint
    for one, other in zip(batches(data), batches(again), strict=True):
        assert torch.equal(one[0], other[0])


def test_content_is_what_counts(tmp_path):
    found = []
    for start in (0, 1, 0):
        place = tmp_path / str(len(found))
        _set(start=start).save_to_disk(str(place))
        found.append(load_data("hf", hf=str(place), data_dir=tmp_path, **OPTIONS).fingerprint)
    assert found[0] == found[2] != found[1]


def test_columns_of_other_types(tmp_path):
    rows = {"png": [{"bytes": _png(i), "path": None} for i in range(12)],
            "kind": [str(10 - i % 2) for i in range(12)], "id": list(range(12))}  # fmt: skip
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "x.parquet"))
    options = {"hf": str(tmp_path / "x.parquet"), "data_dir": tmp_path / "data", **OPTIONS}
    with pytest.raises(UserError, match=r"no column of classes; columns: .*data\.columns\.label="):
        load_data("hf", **options)
    data = load_data("hf", columns={"label": "kind"}, **options)
    assert data.class_names == ["9", "10"]
    with pytest.raises(UserError, match=r"unknown data\.columns\.label 'kinds'; did you mean"):
        load_data("hf", columns={"label": "kinds"}, **options)


def test_wrong_places(tmp_path):
    for options, message in (
        ({}, r"data=hf needs data\.hf="),
        ({"hf": "./nowhere"}, "no such file or folder"),
        ({"hf": str(tmp_path)}, r"it has no \*\.parquet"),
        ({"hf": "nobody/nothing"}, r"cannot load data\.hf=nobody/nothing"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_data("hf", data_dir=tmp_path / "data", **options)
        assert "\n" not in str(error.value)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match=r"cannot load data\.hf=.*x\.parquet"):
        load_data("hf", hf=str(tmp_path / "x.parquet"), data_dir=tmp_path / "data")


def test_pictures_that_are_not_there(tmp_path):
    part = _set(12, ("a", "b"))
    rows = part.cast_column("image", datasets.Image(decode=False)).to_dict()
    rows["image"][3] = {"bytes": b"no picture", "path": None}
    rows["image"][5] = None
    datasets.Dataset.from_dict(rows, part.features).save_to_disk(str(tmp_path / "set"))
    options = {"hf": str(tmp_path / "set"), "data_dir": tmp_path, **OPTIONS}
    with pytest.raises(UserError, match=r"set: train/5: it is empty"):
        load_data("hf", **options)
    data = load_data("hf", on_error="skip", **options)
    assert sorted(data.skipped) == ["train/3", "train/5"]
    assert sum(len(np.unique(images.names)) for images in data.splits.values()) == 10


def test_splits_without_classes_are_left_out(tmp_path, caplog):
    secret = _set(9, start=100).map(lambda row: {"label": -1})
    sets = {"train": _set(), "test": secret}
    (tmp_path / "set").mkdir()
    for name, part in sets.items():
        part.to_parquet(str(tmp_path / "set" / f"{name}.parquet"))
    data = load_data("hf", hf=str(tmp_path / "set"), data_dir=tmp_path, **OPTIONS)
    assert sum(map(len, data.splits.values())) == 30
    assert "the split test has no labels" in caplog.text


def test_columns_with_several_classes_a_row(tmp_path):
    rows = {"png": [{"bytes": _png(i), "path": None} for i in range(4)],
            "labels": [[i, 1] for i in range(4)]}  # fmt: skip
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(UserError, match=r"column 'labels' holds \w+, not one class a row"):
        load_data("hf", hf=str(tmp_path / "x.parquet"), data_dir=tmp_path, **OPTIONS)
