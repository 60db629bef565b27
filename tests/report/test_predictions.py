"""The file of predictions: kept, read again, and refused where it does not fit together."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dwsep_zoo.report.predictions import Predictions, read_predictions

RANDOM = np.random.default_rng(0)
LABEL = np.arange(12) % 4
NAMES = ("cat", "dog", "a fish", "K\u00e4fer \udcff")  # the last one as an odd file system has it


def full(num_images: int, num_classes: int) -> np.ndarray:
    """Probabilities of all classes."""
    return RANDOM.dirichlet(np.ones(num_classes), num_images).astype(np.float16)


def test_what_is_written_is_read(tmp_path):
    probability, name = full(12, 4), np.array([f"{i}/\u732b.png" for i in range(12)])
    made = Predictions(LABEL, probability.argmax(1), NAMES, probability, None, name)
    (tmp_path / "a.npz").write_bytes(made.npz())
    found = read_predictions(tmp_path / "a.npz")
    assert (found.class_names, found.top, len(found)) == (NAMES, None, 12)
    for key in ("label", "predicted", "probability", "name"):
        assert np.array_equal(getattr(found, key), getattr(made, key))
        assert getattr(found, key).dtype == getattr(made, key).dtype


def test_a_file_with_labels_alone_is_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", label=LABEL, predicted=LABEL)
    found = read_predictions(tmp_path / "a.npz")
    assert (found.class_names, found.probability, found.name) == ((), None, None)
    assert np.isnan(found.probability_of(LABEL)).all()


def test_the_highest_probabilities_stand_for_all():
    every = full(50, 30)
    top = np.argsort(-every.astype(np.float32), 1, kind="stable")[:, :5]
    label, predicted = RANDOM.integers(0, 30, 50), top[:, 0]
    kept = Predictions(label, predicted, (), np.take_along_axis(every, top, 1), top)
    whole = Predictions(label, predicted, (), every)
    assert np.array_equal(kept.probability_of(predicted), whole.probability_of(predicted))
    known = (top == label[:, None]).any(1)
    assert np.array_equal(np.isnan(kept.probability_of(label)), ~known)
    assert np.array_equal(kept.probability_of(label)[known], whole.probability_of(label)[known])


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"class_names": np.array(NAMES[:3])}, "classes without a name"),
        ({"class_names": np.arange(4)}, "class_names is int64"),
        ({"class_names": np.array(NAMES), "probability": full(12, 5)}, "probability is float16"),
        ({"probability": full(11, 4)}, "probability is float16 (11, 4)"),
        ({"probability": LABEL}, "probability is int64"),
        ({"probability": full(12, 2), "top": LABEL[:, None]}, "probability is float16 (12, 2)"),
        ({"probability": full(12, 1), "top": full(12, 1)}, "top is float16"),
        ({"probability": full(12, 1), "top": -LABEL[:, None]}, "classes without a name"),
        ({"name": np.array(["a"])}, "name is"),
        ({"label": -LABEL}, "classes without a name"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "a.npz", **{"label": LABEL, "predicted": LABEL, **arrays})
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        read_predictions(tmp_path / "a.npz")
    assert "\n" not in str(error.value)
