from __future__ import annotations

import numpy as np
import pytest
import torch

from dwsep_zoo.data.splits import (
    Images,
    Labelled,
    hold_out,
    is_subset,
    make_splits,
    select_classes,
    thin,
)
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.data_settings import SubsetSettings

NAMES = ["ant", "bee", "cat"]


def _subset(**changes) -> SubsetSettings:
    return SubsetSettings(**{**dict.fromkeys(SubsetSettings.model_fields), "seed": 0, **changes})


def _images(counts: list[int]) -> Images:
    labels = np.repeat(np.arange(len(counts)), counts)
    names = [f"{label}/{i}" for i, label in enumerate(labels)]
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    return Images(names, labels, pixels)


def _counts(images: Images) -> list[int]:
    return np.bincount(images.labels, minlength=3).tolist()


def _split(given: dict[str, Images], seed: int = 0) -> dict[str, Images]:
    return make_splits(given, val_fraction=0.1, test_fraction=0.2, seed=seed)


def test_split_is_a_stratified_partition():
    images = _images([100, 50, 20])
    splits = _split({"train": images})
    assert [_counts(splits[s]) for s in ("train", "val", "test")] == [
        [70, 35, 14],
        [10, 5, 2],
        [20, 10, 4],
    ]
    names = [name for part in splits.values() for name in part.names]
    assert sorted(names) == sorted(images.names)


def test_pixels_and_labels_stay_with_their_names():
    for part in _split({"train": _images([30, 30, 30])}).values():
        for name, label, pixel in zip(part.names, part.labels, part.pixels, strict=True):
            assert name == f"{label}/{int(pixel)}"


def test_split_depends_on_its_seed_alone():
    images = _images([50, 50, 50])
    assert _split({"train": images})["val"].names == _split({"train": images})["val"].names
    assert _split({"train": images})["val"].names != _split({"train": images}, 1)["val"].names


def test_order_and_company_of_an_image_do_not_matter():
    """Neither the order of a listing nor the other classes change what is held out of a class."""
    images = _images([50, 50, 50])
    mixed = images.take(np.random.default_rng(0).permutation(150))
    alone = images.take(np.flatnonzero(images.labels == 1))
    _, held = hold_out(images, 0.2, "k")
    assert set(held.names) == set(hold_out(mixed, 0.2, "k")[1].names)
    assert [n for n in held.names if n[0] == "1"] == hold_out(alone, 0.2, "k")[1].names


@pytest.mark.parametrize("given", ["train", "train test", "train val", "train val test"])
def test_missing_splits_come_out_of_train(given):
    parts = {name: _images([20, 20, 20]) for name in given.split()}
    splits = _split(parts)
    assert list(splits) == ["train", "val", "test"]
    if "test" in parts:
        assert splits["test"] is parts["test"]
    if given == "train val":  # as ImageNet's: its val is tested on, once
        assert splits["test"] is parts["val"]
        assert set(splits["val"].names) <= set(parts["train"].names)
    if given == "train val test":
        assert splits["train"] is parts["train"]
        assert splits["val"] is parts["val"]
    else:
        assert not set(splits["val"].names) & set(splits["train"].names)


@pytest.mark.parametrize("empty", ["val", "test"])
def test_a_split_without_images_was_not_given(empty):
    parts = {name: _images([20, 20, 20]) for name in ("train", "val", "test")}
    given = {name: images for name, images in parts.items() if name != empty}
    expected = _split(given)
    found = _split({**given, empty: _images([0, 0, 0])})
    assert {k: v.names for k, v in found.items()} == {k: v.names for k, v in expected.items()}


def test_small_classes_keep_their_last_image():
    splits = _split({"train": _images([20, 2, 1])})
    assert _counts(splits["train"])[1:] == [1, 1]
    kept, held = hold_out(_images([3, 2, 1]), 0.1, "k")
    assert (_counts(kept), _counts(held)) == ([2, 1, 1], [1, 1, 0])


def test_one_image_a_class_cannot_be_split():
    with pytest.raises(UserError, match=r"single image.*train/<class>"):
        _split({"train": _images([1, 1, 1])})


def test_one_training_image_a_class_is_validated_on_the_test(caplog):
    splits = _split({"train": _images([1, 1, 1]), "val": _images([2, 2, 2])})
    assert len(splits["train"]) == 3
    assert splits["val"] is splits["test"]
    assert "measured on the test images" in caplog.text


def _labelled() -> Labelled:
    return Labelled(NAMES, {"train": _images([40, 30, 20]), "test": _images([4, 3, 2])})


def test_subset_of_classes_is_of_all_splits_and_keeps_the_order():
    part = select_classes(_labelled(), _subset(classes=("cat", "ant")))
    assert part.class_names == ["ant", "cat"]
    assert _counts(part.splits["train"]) == [40, 20, 0]
    assert _counts(part.splits["test"]) == [4, 2, 0]
    assert {name[0] for name in part.splits["train"].names} == {"0", "2"}


def test_number_of_classes_is_drawn_by_the_seed():
    def chosen(seed: int) -> list[str]:
        return select_classes(_labelled(), _subset(num_classes=2, seed=seed)).class_names

    assert chosen(0) == chosen(0)
    assert len({tuple(chosen(seed)) for seed in range(20)}) == 3


def test_thinned_training_images():
    images = _images([40, 30, 20])
    assert _counts(thin(images, _subset(images_per_class=20), NAMES)) == [20, 20, 20]
    assert _counts(thin(images, _subset(fraction=0.1), NAMES)) == [4, 3, 2]
    assert _counts(thin(images, _subset(fraction=0.001), NAMES)) == [1, 1, 1]
    assert thin(images, _subset(fraction=1.0), NAMES).names == images.names
    smaller = thin(images, _subset(images_per_class=5), NAMES).names
    assert set(smaller) < set(thin(images, _subset(images_per_class=20), NAMES).names)
    assert smaller != thin(images, _subset(images_per_class=5, seed=1), NAMES).names


def test_subsets_of_what_is_not_there():
    with pytest.raises(UserError, match="did you mean 'bee'"):
        select_classes(_labelled(), _subset(classes=("ant", "bea")))
    with pytest.raises(UserError, match="num_classes=4: there are 3 classes"):
        select_classes(_labelled(), _subset(num_classes=4))
    with pytest.raises(UserError, match="class 'cat' has 20 training images"):
        thin(_images([40, 30, 20]), _subset(images_per_class=21), NAMES)


def test_a_seed_alone_is_no_subset():
    assert not is_subset(_subset(seed=3))
    assert is_subset(_subset(fraction=0.5))
