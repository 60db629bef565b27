from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dwsep_zoo.data.folder import list_folder
from dwsep_zoo.errors import UserError


def test_folder_of_classes_is_not_split(pictures):
    root = pictures({"cat": 3, "ant": 2, ".cache": 1})
    given = list_folder(root)
    assert given.class_names == ["ant", "cat"]
    assert given.store.root == root
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
    given = list_folder(root)
    assert {split: len(images) for split, images in given.splits.items()} == {
        "train": 5,
        "val": 2,
        "test": 2,
    }
    assert given.splits["val"].names == [f"{name}/a/0.png", f"{name}/b/0.png"]


def test_class_called_train_is_a_class(pictures):
    assert list_folder(pictures({"train": 2, "bus": 2})).class_names == ["bus", "train"]


def test_pictures_deeper_down_and_in_linked_folders_count(pictures, tmp_path):
    root = pictures({"all/a/x": 1, "all/a/y": 2, "elsewhere": 4}) / "all"
    (root / "b").symlink_to(tmp_path / "elsewhere")
    assert np.bincount(list_folder(root).splits["train"].labels).tolist() == [3, 4]


def test_renamed_classes(pictures):
    given = list_folder(pictures({"n01": 1, "n02": 1}), {"n02": "fish"})
    assert given.class_names == ["n01", "fish"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "has no folders with pictures"),
        ({"a": 3}, "single class 'a'"),
        ({"a": 3, "b": 0}, r"/b has no pictures"),
        ({"train/a": 3, "train/b": 0}, r"train/b has no pictures"),
        ({"val/a": 3, "test/b": 3}, "test, val but no folder train"),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "val/c": 1}, "'b' is only in train"),
        ({"train/b": 1, "train/c": 1, "test/a": 1, "test/b": 1}, "'a' is not in train"),
        (
            {"train/a": 1, "train/b": 1, "val": 2},
            r"val has pictures but no folders of classes; .*set data\.folders\.train=train to",
        ),
        (
            {"train/a": 1, "train/b": 1, "test/a": 1, "test/b": 1, "val": 2},
            r"set data\.folders\.test=test data\.folders\.train=train to",
        ),
        ({"a": 1, os.fsdecode(b"caf\xe9"): 1}, r"caf\\xe9', is not in UTF-8"),
    ],
)
def test_impossible_folders(pictures, folders, message):
    with pytest.raises(UserError, match=message) as caught:
        list_folder(pictures(folders))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", [".", "..", "../..", "x", "x/y"])
@pytest.mark.parametrize("place", ["a", "a/x", "a/x/y"])
def test_a_folder_counts_once_whatever_links_lead_to_it(pictures, place, target):
    root = pictures({"root/a": 1, "root/a/x": 2, "root/a/x/y": 4, "root/b": 8}) / "root"
    (root / place / "link").symlink_to(root / "a" / target)
    (root / place / "again").symlink_to(root / "a" / target)
    assert np.bincount(list_folder(root).splits["train"].labels).tolist() == [7, 8]


@pytest.mark.parametrize("target", [".", ".."])
def test_a_link_from_the_root_to_itself_is_no_class(pictures, target):
    root = pictures({"root/a": 1, "root/b": 2}) / "root"
    (root / "loop").symlink_to(root / target)
    assert list_folder(root).class_names == ["a", "b"]


def test_a_link_to_another_class_is_followed_once(pictures):
    root = pictures({"root/a": 1, "root/b": 2}) / "root"
    (root / "a" / "b").symlink_to(root / "b")
    (root / "b" / "a").symlink_to(root / "a")
    assert np.bincount(list_folder(root).splits["train"].labels).tolist() == [3, 3]


@pytest.mark.parametrize("folder", ["/proc", "/sys"])
def test_folders_of_the_kernel_are_refused(folder):
    with pytest.raises(UserError, match="belongs to the operating system and has no pictures"):
        list_folder(Path(folder))


def test_many_other_files_are_refused(pictures, monkeypatch):
    monkeypatch.setattr("dwsep_zoo.data.listing.MOST_OTHERS", 20)
    root = pictures({"a": 1, "b": 1})
    for i in range(21):
        (root / "b" / f"{i}.txt").touch()
    with pytest.raises(UserError, match="/b has more than 20 files and folders that are not"):
        list_folder(root)


def test_a_folder_that_cannot_be_listed_is_named(pictures, monkeypatch):
    root = pictures({"a": 1, "b/deep": 1})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"^cannot list .*b/deep: Permission denied$"):
        list_folder(root)


def test_a_test_without_classes_is_left_out_with_a_warning(pictures, caplog):
    root = pictures({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1, "test": 4})
    assert list(list_folder(root).splits) == ["train", "val"]
    assert "test has pictures but no folders of classes" in caplog.text


def test_validation_images_without_classes_can_be_left_out(pictures):
    root = pictures({"train/a": 1, "train/b": 1, "val": 2})
    assert list(list_folder(root, given={"train": "train"}).splits) == ["train"]
