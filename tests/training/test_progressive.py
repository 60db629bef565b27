"""Progressive resizing: sizes that grow, networks that see them, and values that cannot work."""

import pytest
import torch

from dwsep_zoo import UserError
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.progressive import SIZES, resize, training_size


def test_sizes_grow_to_the_full_one_and_stay_there():
    sizes = [training_size(i / 20, full=32, initial=20, full_from=0.5) for i in range(21)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[9], sizes[10:]) == (20, 28, [32] * 11)
    assert all(size % 4 == 0 for size in sizes)


@pytest.mark.parametrize(("full", "initial"), [(32, 16), (224, 96), (299, 1)])
def test_there_are_few_sizes(full, initial):
    sizes = {training_size(i / 1000, full=full, initial=initial, full_from=1) for i in range(1001)}
    assert {initial, full} <= sizes
    assert all(size % (full // SIZES) == 0 for size in sizes - {initial, full})


@pytest.mark.parametrize("initial", [None, 32])
def test_nothing_is_resized_by_default(initial):
    images = torch.rand(2, 3, 32, 32)
    for progress in (0.0, 0.3, 1.0):
        size = training_size(progress, full=32, initial=initial, full_from=0.5)
        assert resize(images, size) is images


def test_a_first_size_that_is_no_multiple_is_kept():
    assert training_size(0.0, full=32, initial=18, full_from=1.0) == 18
    assert training_size(0.1, full=32, initial=18, full_from=1.0) == 18


def test_resizing_keeps_the_mean_and_the_memory_format():
    images = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    small = resize(images, 16)
    assert small.shape == (2, 3, 16, 16)
    assert small.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(small.mean((2, 3)), images.mean((2, 3)), atol=0.02, rtol=0)


def test_the_network_sees_them_in_training_and_the_full_ones_in_evaluation(run, monkeypatch):
    seen = []
    forward = LitClassifier.forward

    def spied(self, x):
        seen.append((self.training, x.shape[-1]))
        return forward(self, x)

    monkeypatch.setattr(LitClassifier, "forward", spied)
    run("run", "trainer.max_epochs=4", "recipe.initial_size=16", "recipe.full_size_from=1")
    trained = [size for training, size in seen if training]
    assert trained[: 4 * 4] == [16] * 4 + [20] * 4 + [24] * 4 + [28] * 4
    assert {size for training, size in seen[4:] if not training} == {32}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("recipe.initial_size=8", "from 16, the network's output stride, to 32, .* got 8"),
        ("recipe.initial_size=64", "from 16, the network's output stride, to 32, .* got 64"),
    ],
)
def test_impossible_values(run, override, line):
    with pytest.raises(UserError, match=line):
        run("run", override)
