"""The loss of a training batch, and the accuracy where classes are unequal."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight

from dwsep_zoo.training.metrics import ClassMean
from dwsep_zoo.training.objective import balanced_weights, cross_entropy

LABELS = np.repeat([0, 1, 2, 4], [40, 8, 15, 1])  # none of class 3


@pytest.fixture
def logits():
    return torch.randn(len(LABELS), 5, dtype=torch.double)


def test_balanced_weights_are_those_of_scikit_learn():
    weights = balanced_weights(LABELS, 5)
    present = [0, 1, 2, 4]
    want = compute_class_weight("balanced", classes=np.array(present), y=LABELS)
    assert weights[present].tolist() == pytest.approx(want)
    assert weights[3] == 0
    assert weights[LABELS].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_loss_is_that_of_torch(logits, smoothing):
    """On all training images, where the weights' mean is 1; in parts, the parts have that mean."""
    labels, weights = torch.from_numpy(LABELS), balanced_weights(LABELS, 5)
    options = {"label_smoothing": smoothing, "class_weights": weights}
    torchs = torch.nn.CrossEntropyLoss(weights.double(), label_smoothing=smoothing)
    assert torch.allclose(cross_entropy(logits, labels, **options), torchs(logits, labels))
    parts = [
        cross_entropy(logits[rows], labels[rows], **options)
        for rows in torch.randperm(64).split(16)
    ]
    assert torch.allclose(torch.stack(parts).mean(), torchs(logits, labels))


def test_without_weights_it_is_torchs_mean_bit_for_bit(logits):
    labels = torch.from_numpy(LABELS)
    want = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(cross_entropy(logits, labels, label_smoothing=0.1), want)


def test_class_mean_is_balanced_accuracy(logits):
    labels, metric = torch.from_numpy(LABELS), ClassMean(5)
    predicted = logits.argmax(1)
    for rows in torch.arange(64).split(10):
        metric.add_images(predicted[rows] == labels[rows], labels[rows])
    metric.update()
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        right = balanced_accuracy_score(LABELS, predicted.numpy())
    assert metric.compute().item() == pytest.approx(right)
