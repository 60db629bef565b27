from __future__ import annotations

import numpy as np
import pytest

from dwsep_zoo.data.folder import Folder
from dwsep_zoo.errors import UserError


def _load(root):
    source = Folder(root)
    source.prepare()
    return source.load()


def test_folder_of_classes_is_not_split(pictures):
    root = pictures({"cat": 3, "ant": 2, ".cache": 1})
    given = _load(root)
    assert given.class_names == ["ant", "cat"]
    assert given.root == root
    assert list(given.splits) == ["train"]
    images = given.splits["train"]
    assert images.names == ["ant/0.png", "ant/1.png", "cat/0.png", "cat/1.png", "cat/2.png"]
    assert images.labels.tolist() == [0, 0, 1, 1, 1]
    assert images.pixels is None


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_folders_of_splits(pictures, name):
    folders = {"train/a": 3, "train/b": 2, f"{name}/a": 1, f"{name}/b": 1, "test/a": 2}
    root = pictures(folders)
    (root / "test" / "b").mkdir()  # no picture of it to test on is no mistake
    given = _load(root)
    assert {split: len(images) for split, images in given.splits.items()} == {
        "train": 5,
        "val": 2,
        "test": 2,
    }
    assert given.splits["val"].names == [f"{name}/a/0.png", f"{name}/b/0.png"]


def test_class_called_train_is_a_class(pictures):
    assert _load(pictures({"train": 2, "bus": 2})).class_names == ["bus", "train"]


def test_pictures_deeper_down_and_in_linked_folders_count(pictures, tmp_path):
    root = pictures({"all/a/x": 1, "all/a/y": 2, "elsewhere": 4}) / "all"
    (root / "b").symlink_to(tmp_path / "elsewhere")
    assert np.bincount(_load(root).splits["train"].labels).tolist() == [3, 4]


def test_renamed_classes(pictures):
    given = Folder(pictures({"n01": 1, "n02": 1}), {"n02": "fish"}).load()
    assert given.class_names == ["n01", "fish"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "has no folders with pictures"),
        ({"a": 3}, "single class 'a'"),
        ({"a": 3, "b": 0}, r"/b has no pictures"),
        ({"train/a": 3, "train/b": 0}, r"train/b has no pictures"),
        ({"val/a": 3, "test/b": 3}, "val, test but no folder train"),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "val/c": 1}, "'b' is only in train"),
        ({"train/b": 1, "train/c": 1, "test/a": 1, "test/b": 1}, "'a' is not in train"),
    ],
)
def test_impossible_folders(pictures, folders, message):
    with pytest.raises(UserError, match=message) as caught:
        _load(pictures(folders))
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"data\.root=.*nowhere: there is no such folder"):
        _load(tmp_path / "nowhere")
