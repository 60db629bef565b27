"""Which names are splits, pictures, and neither."""

from __future__ import annotations

import numpy as np
import pytest
from data_helpers import load_data
from PIL import Image

from dwsep_zoo.data.folder import list_folder
from dwsep_zoo.data.listing import find_pictures, split_of, suffixes
from dwsep_zoo.errors import UserError


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Training TRAIN seg_train training_set train-set trainset Training-Data"),
        ("train", "images_train train_images trn"),
        ("val", "val Valid validation Validation_Set dev val-images seg_val"),
        ("test", "test Testing TEST seg_test test_set test-images testset"),
        (None, "cat trainer strain contest testament valley devil set data images seg 0 training1"),
    ],
)
def test_names_of_splits(split, names):
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("seg_train", "seg_test"),
        ("training_set", "test_set"),
        ("train", "Testing"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("TRAIN", "test"),
    ],
)
def test_splits_in_other_spellings(pictures, caplog, train, test):
    counts = {f"{train}/a": 4, f"{train}/b": 3, f"{test}/a": 2, f"{test}/b": 1, "extra": 5}
    given = list_folder(pictures(counts))
    assert given.class_names == ["a", "b"]
    assert {split: len(images) for split, images in given.splits.items()} == {"train": 7, "test": 3}
    assert "left out beside those of the splits: extra" in caplog.text


@pytest.mark.parametrize(
    "counts",
    [
        {"train": 3, "test": 3},
        {"Training": 3, "Testing": 3, "Validation": 1},
        {"val/a": 3, "val/b": 3, "test/a": 3, "test/b": 3, "bus": 1},
        {"train/a": 3, "train/b": 3, "training_set/a": 3},
    ],
)
def test_what_only_looks_like_splits_is_refused(pictures, counts):
    with pytest.raises(UserError, match=r"data\.folders\.train=") as caught:
        list_folder(pictures(counts))
    assert "\n" not in str(caught.value)


def test_the_user_names_the_splits(pictures):
    root = str(pictures({"one/a": 9, "one/b": 9, "two/a": 2, "two/b": 2, "train": 1, "test": 1}))
    data = load_data("folder", root=root, folders={"train": "one", "test": "two"})
    assert data.class_names == ["a", "b"]
    assert len(data.splits["test"]) == 4
    flat = list_folder(pictures({"flat/train": 2, "flat/test": 2}) / "flat", given={"train": "."})
    assert flat.class_names == ["test", "train"]
    for given, message in (
        ({"train": "ones"}, "no such folder; it has "),
        ({"test": "two"}, "need"),
    ):
        with pytest.raises(UserError, match=message):
            load_data("folder", root=root, folders=given)


@pytest.mark.parametrize(
    "name", ["@eaDir", ".ipynb_checkpoints", "__MACOSX", "lost+found", "$RECYCLE.BIN"]
)
def test_folders_of_systems_hold_no_pictures(pictures, name):
    root = pictures({"a": 1, "b": 1, name: 1, f"a/{name}": 1})
    (root / "b" / "Thumbs.db").touch()
    given = list_folder(root)
    assert given.class_names == ["a", "b"]
    assert given.splits["train"].names == ["a/0.png", "b/0.png"]


@pytest.mark.parametrize("suffix", ["jfif", "gif", "avif", "jp2", "tga", "pbm", "ico", "apng"])
def test_whatever_pillow_reads_is_a_picture(tmp_path, suffix):
    if f".{suffix}" not in suffixes():
        pytest.skip("this Pillow was built without it")
    path = tmp_path / f"x.{suffix.upper()}"
    Image.new("RGB", (16, 16), "red").convert("1" if suffix == "pbm" else "RGB").save(path)
    assert find_pictures(tmp_path).names == [path.name]


def test_files_left_out_are_counted(pictures, caplog):
    root = pictures({"a": 2, "b": 2})
    for name in ("a/1.txt", "a/2.txt", "b/movie.mp4", "b/noSuffix", "a/.hidden", "a/desktop.ini"):
        (root / name).touch()
    Image.new("RGB", (4, 4)).save(root / "loose.png")
    assert len(list_folder(root).splits["train"]) == 4
    left, loose = [record.getMessage() for record in caplog.records]
    assert "4 (2 .txt, 1 .mp4, 1 without)" in loose
    assert "in no class: 1" in left


def test_a_class_of_other_files_says_so(pictures):
    root = pictures({"a": 2, "b": 0})
    (root / "b" / "x.heic").touch()
    with pytest.raises(UserError, match="/b has no pictures, but 1 other files"):
        list_folder(root)


def test_pictures_below_a_class_keep_their_class(pictures):
    root = pictures({"a/train": 2, "a/test": 1, "b/train": 1})
    assert np.bincount(list_folder(root).splits["train"].labels).tolist() == [3, 1]
