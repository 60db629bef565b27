"""Outputs and classes are matched by name."""

import pytest
import torch

from dwsep_zoo import UserError, create_model
from dwsep_zoo.weights.classes import fit_classifier, imagenet_classes, outputs_of

IDS, WORDS = imagenet_classes()


@pytest.mark.parametrize(
    ("given", "names", "want"),
    [
        (["a", "b"], ["a", "b"], [0, 1]),
        (["b", "a"], ["a", "b"], [1, 0]),
        (["Cat", "dog"], ["dog", "cat"], [1, 0]),
        (["A", "a"], ["a", "A"], [1, 0]),
        (["c", "a"], ["a", "b", "c"], [2, 0]),
        ([IDS[7], IDS[3]], IDS, [7, 3]),
        ([IDS[7], IDS[3]], WORDS, [7, 3]),
    ],
)
def test_outputs(given, names, want):
    assert outputs_of(given, names, "it") == want


@pytest.mark.parametrize(
    ("given", "names", "words"),
    [
        (["cat", "bird"], ["cat", "dog"], "'bird'"),
        (["cats", "dog"], ["cat", "dog"], "did you mean 'cat'"),
        (["Cat", "cat"], ["cat", "dog"], "Cat|cat"),
        (["Cat", "dog"], ["cat", "CAT", "dog"], "Cat"),  # which of the two?
    ],
)
def test_classes_that_are_not_there(given, names, words):
    with pytest.raises(UserError, match=words):
        outputs_of(given, names, "it")


def model():
    torch.manual_seed(0)
    found = create_model("mobilenet_v1", width_mult=0.25, num_classes=3, output_stride=8).eval()
    torch.nn.init.normal_(found.classifier.weight)
    torch.nn.init.normal_(found.classifier.bias)
    return found


def test_a_classifier_in_another_order():
    x, ours, plain = torch.randn(2, 3, 32, 32), model(), model()
    fit_classifier(ours, ["c", "a", "b"], ["a", "b", "c"], "it", training=False)
    torch.testing.assert_close(ours(x), plain(x)[:, [2, 0, 1]])


def test_a_classifier_of_other_classes():
    x, ours, plain = torch.randn(2, 3, 32, 32), model(), model()
    with pytest.raises(UserError, match="'x'"):
        fit_classifier(ours, ["x", "a", "b"], ["a", "b", "c"], "it", training=False)
    torch.testing.assert_close(ours(x), plain(x))
    fit_classifier(ours, ["x", "a", "b"], ["a", "b", "c"], "it", training=True)
    assert not ours(x).any()


@pytest.mark.parametrize("names", [(), ("a", "b", "c", "d")])
def test_unknown_classes_and_another_number_change_nothing(names):
    x, ours, plain = torch.randn(2, 3, 32, 32), model(), model()
    fit_classifier(ours, ["x", "y", "z"], names, "it", training=False)
    torch.testing.assert_close(ours(x), plain(x))
