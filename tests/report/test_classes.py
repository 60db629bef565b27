"""The test by class, against scikit-learn and by identities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from dwsep_zoo.report import classes
from dwsep_zoo.report.class_pairs import MOST_CLASSES, class_pairs
from dwsep_zoo.report.comparison import collect
from dwsep_zoo.report.examples import examples
from dwsep_zoo.report.html import html_report
from dwsep_zoo.report.predictions import Predictions
from dwsep_zoo.report.render import markdown


def drawn(num_images: int, num_classes: int, seed: int = 0) -> Predictions:
    """About half of them right; without images of the last class."""
    random = np.random.default_rng(seed)
    probability = random.dirichlet(np.ones(num_classes), num_images)
    label = random.integers(0, num_classes - 1, num_images)
    probability[np.arange(num_images), label] += random.random(num_images)
    probability /= probability.sum(1, keepdims=True)
    names = tuple(f"class {n}" for n in range(num_classes))
    kept = probability.astype(np.float16)
    return Predictions(label, probability.argmax(1), names, kept)


@pytest.fixture(params=[(400, 5), (300, 40), (40, 60)], ids=str)
def found(request):
    return drawn(*request.param)


def test_scores_are_those_of_scikit_learn(found):
    num_classes = len(found.class_names)
    scores = classes.per_class(found, num_classes)
    true, predicted = found.label, found.predicted
    assert sum(scores.images) == len(found)
    tested = [n for n, images in enumerate(scores.images) if images]
    assert [n for n, a in enumerate(scores.accuracy) if a is not None] == tested
    recall = recall_score(true, predicted, labels=tested, average=None)
    assert [scores.accuracy[n] for n in tested] == pytest.approx(recall.tolist())
    assert scores.macro_f1 == pytest.approx(f1_score(true, predicted, average="macro"))
    assert scores.balanced_acc == pytest.approx(recall.mean())
    if set(predicted) <= set(true):  # scikit-learn warns of others
        assert scores.balanced_acc == pytest.approx(balanced_accuracy_score(true, predicted))


def test_confusions_are_the_matrix_of_scikit_learn(found):
    num_classes = len(found.class_names)
    counts = classes.confusion_matrix(found, num_classes)
    want = confusion_matrix(found.label, found.predicted, labels=range(num_classes))
    assert np.array_equal(counts, want)
    every = classes.confusions(found, num_classes**2)
    wrong = int((found.label != found.predicted).sum())
    assert sum(one.images for one in every) == counts.sum() - np.trace(counts) == wrong
    for one in every:
        assert one.images == counts[one.true, one.predicted]
        assert one.share == one.images / counts[one.true].sum()
    assert [one.images for one in every] == sorted((one.images for one in every), reverse=True)
    assert classes.confusions(found, 3) == every[:3]


def test_the_surest_mistakes_come_first(found):
    places = classes.surest_mistakes(found, len(found))
    assert sorted(places) == np.flatnonzero(found.label != found.predicted).tolist()
    sure = found.probability_of(found.predicted)[places]
    assert (np.diff(sure) <= 0).all()
    assert classes.surest_mistakes(found, 4).tolist() == places[:4].tolist()


def test_equal_and_unknown_probabilities_are_in_order():
    probability = np.array([[1, 1e-4, 0], [1, 1e-6, 0], [np.nan] * 3, [0.9, 0.1, 0], [0, 1, 0]])
    label, predicted = np.array([1, 1, 1, 1, 1]), np.array([0, 0, 0, 0, 1])
    places = classes.surest_mistakes(Predictions(label, predicted, (), probability), 9)
    assert places.tolist() == [1, 0, 3, 2]


@pytest.fixture
def trained(write_run, as_separable):
    """Two runs of each network with these predictions, over a data set of files."""

    def write(standard: list[Predictions], separable: list[Predictions], **changes) -> Path:
        for conv, networks in (("standard", standard), ("separable", separable)):
            for seed, found in enumerate(networks):
                options = as_separable if conv == "separable" else {}
                metrics = {"test/acc": found.accuracy}
                own = {**options, "seed": seed, "metrics": metrics, **changes}
                folder = write_run(f"{conv}-{seed}", **own)
                (folder / "predictions.npz").write_bytes(found.npz())
        return folder.parent

    return write


def altered(found: Predictions, seed: int, name: np.ndarray | None = None) -> Predictions:
    """Other predictions of the same images."""
    random = np.random.default_rng(seed)
    other = random.integers(0, len(found.class_names), len(found))
    predicted = np.where(random.random(len(found)) < 0.3, other, found.predicted)
    return Predictions(found.label, predicted, found.class_names, found.probability, None, name)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("num_classes", [6, 40])
def test_classes_of_a_pair(trained, tmp_path, seeds, num_classes):
    base = drawn(500, num_classes)
    standard = [altered(base, seed) for seed in range(seeds)]
    separable = [altered(base, 10 + seed) for seed in range(seeds)]
    (table,) = collect([trained(standard, separable)], tmp_path).tables
    (pair,) = class_pairs(table)
    row = table.rows[1]
    shown = pair.differences
    assert pair.number == num_classes - 1
    assert len(shown) == min(pair.number, MOST_CLASSES)
    assert (np.diff([one.paired.mean for one in shown]) > -1e-9).all()
    if len(shown) == pair.number:  # together they are the difference of the whole test
        total = sum(one.images * one.paired.mean for one in shown) / len(base)
        assert total == pytest.approx(row.paired.mean)
    for one in shown:
        number = base.class_names.index(one.name)
        own = base.label == number
        accuracies = [
            [float((p.predicted[own] == number).mean()) for p in networks]
            for networks in (standard, separable)
        ]
        assert one.images == own.sum()
        differences = np.subtract(accuracies[1], accuracies[0]).tolist()
        assert one.paired.differences == pytest.approx(differences)
        assert one.other - one.reference == pytest.approx(one.paired.mean)
        assert (one.paired.t is None) == (np.ptp(differences) < 1e-9)
        if seeds == 1:  # the rule is McNemar's test, on the images of the class
            (test,) = one.paired.mcnemar
            assert test.only_other - test.only_reference == round(one.paired.mean * one.images)
            assert one.paired.outcome == test.outcome


def test_where_a_pair_disagrees(trained, tmp_path):
    base = drawn(300, 4)
    standard, separable = ([altered(base, s) for s in seeds] for seeds in ((1, 2), (3, 4)))
    (table,) = collect([trained(standard, separable)], tmp_path).tables
    (pair,) = class_pairs(table)
    right = [[p.predicted == p.label for p in networks] for networks in (standard, separable)]
    only = np.all(right[0], axis=0) & ~np.any(right[1], axis=0)
    assert sorted(pair.only_reference) == np.flatnonzero(only).tolist()
    other = np.all(right[1], axis=0) & ~np.any(right[0], axis=0)
    assert pair.only_other.tolist() == np.flatnonzero(other).tolist()
    taken = separable[0].predicted
    for one in pair.lost:
        assert one.images == (only & (base.label == one.true) & (taken == one.predicted)).sum()
    words = " ".join(pair.sentences)
    assert f"only standard classifies {only.sum()} correctly in every seed" in words
    assert "about 0.15 of the 3 classes would be told better or worse by chance" in words
    with_one = [row for row in table.rows if row.paired and row.paired.mcnemar]
    assert len(with_one) == 1


def test_all_formats_have_the_classes(trained, tmp_path):
    base = drawn(200, 4)
    names = {"data__class_names": ["cat", "dog", "<b>fish</b>", "none"]}  # an older run's record
    old = [Predictions(p.label, p.predicted) for p in (base, altered(base, 1))]
    comparison = collect([trained(old[:1], old[1:], **names)], tmp_path)
    text, page = markdown(comparison), html_report(comparison)
    for one in comparison.classes[0][0].differences:
        assert one.name in {"cat", "dog", "<b>fish</b>"}
        assert f"| {one.name}" in text
    assert "<b>fish" not in page
    assert "&lt;b&gt;fish" in page
    assert "### By class: depthwise_separable against standard" in text


@pytest.mark.parametrize("change", ["other images", "no predictions"])
def test_networks_without_common_images_have_no_classes(trained, tmp_path, change):
    base = drawn(200, 4)
    runs = trained([base], [base if change == "no predictions" else drawn(200, 4, seed=5)])
    if change == "no predictions":
        (runs / "standard-0" / "predictions.npz").unlink()
    comparison = collect([runs], tmp_path)
    assert comparison.classes == ((),)
    assert "By class" not in markdown(comparison)
    assert "No pair of networks has predictions of the same test images" in html_report(comparison)


def test_examples_are_pictures_below_the_root_only(trained, tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    Image.new("RGB", (300, 200), "red").save(root / "a.png")
    Image.new("L", (8, 8)).save(tmp_path / "outside.png")
    (root / "text.png").write_text("no picture")
    names = ["a.png", "../outside.png", str(tmp_path / "outside.png"), "text.png", "gone.png"]
    label = np.zeros(6, dtype=np.int64)
    right = Predictions(label, label, ("cat", "dog"))
    wrong = Predictions(label, label + 1, ("cat", "dog"), None, None, np.array([*names, "12"]))
    runs = trained([right], [wrong], config__data={"root": str(root), "batch_size": 64})
    comparison = collect([runs], tmp_path)
    shown = examples(comparison.classes[0][0])
    assert [(one.true, one.taken_for) for one in shown] == [("cat", "dog")] * 6
    assert {one.name for one in shown if one.uri} == {"a.png"}
    page = html_report(comparison)
    assert page.count("<img ") == page.count('<img src="data:image/jpeg;base64,') == 1
    assert "img-src data:" in page
