"""Mixup and cutmix: identities, torchvision's transforms, and the loss of what is mixed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from data_helpers import data_settings
from torchvision.transforms import v2

from dwsep_zoo.data import create_data
from dwsep_zoo.data.loader import BatchKey
from dwsep_zoo.data.mix import PARTS, Mixing, mix
from dwsep_zoo.training.objective import cross_entropy, main_labels

N, CLASSES, H, W = 6, 7, 16, 12


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(N, 3, H, W).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(CLASSES, (N,))


def _key(**changes: int) -> BatchKey:
    return BatchKey(**{"seed": 0, "epoch": 0, "number": 0, "rank": 0, **changes},
                    indices=torch.arange(N), rounds=torch.zeros(N))  # fmt: skip


def _draws(cut: int, share: float, row: float = 0.5, column: float = 0.5) -> torch.Tensor:
    return torch.tensor([cut, *(int(part * PARTS) for part in (share, row, column))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cut", [0, 1])
def test_a_whole_share_is_the_image(images, cut, dtype):
    images = images.to(dtype)
    mixed, share = mix(images, _draws(cut, 1.0))
    assert torch.equal(mixed, images)
    assert mixed.dtype == dtype
    assert share == 1
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_mixup_is_torchvisions(images, labels, share):
    theirs = v2.MixUp(num_classes=CLASSES)
    expected = theirs.transform(images, {"lam": share, "labels": labels, "batch_size": N})
    mixed, found = mix(images, _draws(0, share))
    torch.testing.assert_close(mixed, expected)
    assert found.item() == pytest.approx(share, abs=1e-6)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75])
@pytest.mark.parametrize("place", [(0.5, 0.5), (0.0, 0.0), (0.99, 0.4)])
def test_cutmix_is_torchvisions(images, labels, share, place):
    """The part that is cut off at the edge counts for the own image."""
    row, column = int(place[0] * H), int(place[1] * W)
    reach = [int(0.5 * (1 - share) ** 0.5 * size) for size in (H, W)]
    top, bottom = max(row - reach[0], 0), min(row + reach[0], H)
    left, right = max(column - reach[1], 0), min(column + reach[1], W)
    params = {"box": (left, top, right, bottom), "labels": labels, "batch_size": N}
    expected = v2.CutMix(num_classes=CLASSES).transform(images, params)
    mixed, found = mix(images, _draws(1, share, *place))
    assert torch.equal(mixed, expected)
    area = (bottom - top) * (right - left) / (H * W)
    assert found.item() == pytest.approx(1 - area, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_loss_is_that_of_soft_targets(labels, share, smoothing):
    logits = torch.randn(N, CLASSES, requires_grad=True)
    one = F.one_hot(labels, CLASSES).float()
    targets = share * one + (1 - share) * one.roll(1, 0)
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    found = cross_entropy(logits, labels, share=torch.tensor(share), label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_the_loss_of_unmixed_images_is_as_before(labels):
    logits = torch.randn(N, CLASSES)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(cross_entropy(logits, labels, label_smoothing=0.1), expected)
    assert main_labels(labels, None) is labels


def test_accuracy_is_of_the_larger_share():
    labels = torch.tensor([0, 1, 2])
    assert main_labels(labels, torch.tensor(0.6)).tolist() == [0, 1, 2]
    assert main_labels(labels, torch.tensor(0.4)).tolist() == [2, 0, 1]


def test_draws_depend_on_seed_epoch_number_and_rank():
    mixing = Mixing(0.5, 1.0)
    first = mixing.draw(_key())
    assert torch.equal(first, mixing.draw(_key()))
    for change in ("seed", "epoch", "number", "rank"):
        assert not torch.equal(first, mixing.draw(_key(**{change: 1})))
    cut = [mixing.draw(_key(number=i))[0].item() for i in range(400)]
    assert sum(cut) / 400 == pytest.approx(0.5, abs=0.1)
    assert not any(Mixing(0.5, None).draw(_key(number=i))[0] for i in range(9))
    assert all(Mixing(None, 0.5).draw(_key(number=i))[0] for i in range(9))


def test_shares_have_the_variance_of_their_beta_distribution():
    for alpha in (0.2, 1.0):
        shares = torch.tensor([
            Mixing(alpha, None).draw(_key(number=i))[1].item() / PARTS for i in range(2_000)
        ])  # fmt: skip
        assert shares.mean().item() == pytest.approx(0.5, abs=0.04)
        assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_batches_of_training_alone_are_mixed():
    data = create_data(data_settings(), seed=0, data_dir="unused", mixing=Mixing(None, 1.0))
    data.prepare_data()
    data.setup()
    for split, training in (("train", True), ("val", False), ("test", False)):
        batch = next(iter(getattr(data, f"{split}_dataloader")()))
        assert (batch.mix is not None) == training
    assert next(iter(data.statistics_dataloader(64))).mix is None
    raw = next(iter(data.train_dataloader()))
    plain, labels = data.prepare_batch(raw)
    mixed, same, share = data.training_batch(raw)
    assert torch.equal(labels, same)
    other = mixed != plain
    assert torch.equal(mixed[other], plain.roll(1, 0)[other])
    assert 0 < share < 1
