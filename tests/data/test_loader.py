from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from dwsep_zoo.data.augment import CropFlip, draw_batch
from dwsep_zoo.data.loader import (
    BalancedSampler,
    BatchKey,
    EpochBatches,
    EpochSampler,
    Loader,
    RawBatch,
)
from dwsep_zoo.data.memory import MemoryReader, mean_and_std
from dwsep_zoo.data.splits import Images
from dwsep_zoo.errors import UserError


def _images(n: int) -> Images:
    pixels = torch.randint(0, 256, (n, 4, 4, 3), dtype=torch.uint8)
    return Images([str(i) for i in range(n)], np.arange(n), pixels)


def _loader(n: int = 23, *, batch_size: int = 4, seed: int = 0, training: bool = True, **options):
    sampler = EpochSampler(n, seed=seed, shuffle=training, even=training, **options)
    batches = EpochBatches(sampler, batch_size, drop_last=training)
    torch.manual_seed(0)
    images = _images(n)
    draw = partial(draw_batch, augment=CropFlip(), num_images=n, side=4) if training else None
    return Loader(MemoryReader(images.pixels, images.labels, draw=draw), batches)


def _epoch(loader: Loader, epoch: int) -> list[RawBatch]:
    loader.batch_sampler.sampler.set_epoch(epoch)
    return list(loader)


def _equal(one: list[RawBatch], other: list[RawBatch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x.images, y.images)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.draws, y.draws)
        for x, y in zip(one, other, strict=True)
    )


def test_an_epoch_has_distinct_images_in_full_batches():
    loader = _loader()
    labels = [batch.labels for batch in _epoch(loader, 0)]
    assert [len(part) for part in labels] == [4] * 5 == [4] * len(loader)
    assert len(set(torch.cat(labels).tolist())) == 20


def test_batch_holds_the_images_of_its_labels():
    loader = _loader()
    pixels = loader._batches.dataset.rows.view(-1, 4, 4, 3)
    for images, labels, *_ in _epoch(loader, 0):
        assert torch.equal(images, pixels[labels].permute(0, 3, 1, 2))


def test_the_global_generator_is_left_alone():
    loader = _loader()
    before = torch.get_rng_state()
    _epoch(loader, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_a_function_of_seed_and_epoch():
    loader = _loader()
    first, second, again = _epoch(loader, 0), _epoch(loader, 1), _epoch(loader, 0)
    torch.manual_seed(1234)
    assert _equal(first, again)
    assert _equal(second, _epoch(_loader(), 1))
    assert not _equal(first, second)
    assert not _equal(first, _epoch(_loader(seed=1), 0))
    draws = torch.cat([batch.draws for batch in first + second])
    assert len(set(draws.flatten().tolist())) == draws.numel()


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_batch(world_size):
    """Batch k of all processes together is batch k of one with the whole batch size."""
    whole = _epoch(_loader(24, batch_size=2 * world_size), 3)
    shares = [
        _epoch(_loader(24, batch_size=2, rank=rank, world_size=world_size), 3)
        for rank in range(world_size)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(batch.labels.tolist()) == sorted(
            torch.cat([p.labels for p in parts]).tolist()
        )
    assert not torch.equal(shares[0][0].draws, shares[1][0].draws)


def test_processes_train_equally_long_and_evaluate_each_image_once():
    training = [_loader(23, rank=rank, world_size=3) for rank in range(3)]
    assert {len(_epoch(loader, 0)) for loader in training} == {1} == {len(x) for x in training}
    evaluation = [_loader(23, training=False, rank=rank, world_size=3) for rank in range(3)]
    seen = [batch.labels for loader in evaluation for batch in _epoch(loader, 0)]
    assert sorted(torch.cat(seen).tolist()) == list(range(23))
    assert [len(_epoch(loader, 0)) for loader in evaluation] == [len(x) for x in evaluation]


def test_evaluation_is_in_order_without_draws():
    batches = _epoch(_loader(training=False), 0)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), torch.arange(23))
    assert all(batch.draws is None and not batch.training for batch in batches)


@pytest.mark.parametrize("done", [0, 1, 4])
def test_restart_inside_an_epoch(done):
    loader = _loader()
    whole = _epoch(loader, 2)
    loader = _loader()
    loader.batch_sampler.sampler.set_epoch(2)
    iterator = iter(loader)
    for _ in range(done):
        next(iterator)
    state = loader.state_dict()

    loader = _loader()
    loader.load_state_dict(state)
    iterator = iter(loader)  # lightning makes it before it sets the epoch
    assert len(loader) == 5
    loader.batch_sampler.sampler.set_epoch(2)
    assert _equal(list(iterator), whole[done:])
    assert _equal(_epoch(loader, 2), whole)


def test_restart_after_an_epoch_begins_the_next_at_its_beginning():
    loader = _loader()
    _epoch(loader, 2)
    state = loader.state_dict()
    loader = _loader()
    loader.load_state_dict(state)
    assert _equal(_epoch(loader, 3), _epoch(_loader(), 3))


def test_state_is_plain_and_survives_loading():
    loader = _loader()
    _epoch(loader, 2)
    state = loader.state_dict()
    assert {type(value) for value in state.values()} == {int}
    other = _loader()
    other.load_state_dict(state)
    assert other.state_dict() == state


def test_restart_with_other_batches_is_refused():
    state = _loader().state_dict()
    with pytest.raises(UserError, match=r"5 batches.*11"):
        _loader(batch_size=2).load_state_dict(state)


class _Failing:
    def __getitem__(self, key: BatchKey) -> UserError:
        return UserError(f"batch {key.number} of epoch {key.epoch}")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_of_a_reader_is_raised_as_it_is(num_workers):
    sampler = EpochSampler(8, seed=0, shuffle=True, even=True)
    loader = Loader(_Failing(), EpochBatches(sampler, 4, drop_last=True), num_workers=num_workers)
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert str(caught.value) == "batch 0 of epoch 0"


def test_mean_and_std_are_numpys():
    images = _images(50)
    scaled = images.pixels.numpy() / 255
    mean, std = mean_and_std(images)
    assert mean == pytest.approx(scaled.mean((0, 1, 2)), abs=6e-5)
    assert std == pytest.approx(scaled.std((0, 1, 2)), abs=6e-5)


def test_constant_images_can_be_normalised():
    images = _images(3)
    images.pixels.fill_(7)
    assert min(mean_and_std(images)[1]) > 0


# Balanced

COUNTS = (40, 9, 3, 8)
LABELS = np.random.default_rng(0).permutation(np.repeat(range(4), COUNTS))


def _balanced(epoch: int = 0, seed: int = 0, **place: int) -> list[int]:
    sampler = BalancedSampler(LABELS, seed=seed, **place)
    sampler.set_epoch(epoch)
    indices, rounds = sampler.order()
    assert len(indices) == len(rounds) == len(sampler)
    return indices.tolist()


def test_every_class_is_equally_often_in_an_epoch():
    for epoch in range(3):
        assert np.bincount(LABELS[_balanced(epoch)]).tolist() == [len(LABELS) // 4] * 4


def test_the_images_of_a_class_come_equally_often():
    """To one time, after any number of epochs; within an epoch they do, too."""
    shown = np.zeros(len(LABELS), int)
    for epoch in range(8):
        now = np.bincount(_balanced(epoch), minlength=len(LABELS))
        shown += now
        for label in range(4):
            assert np.ptp(shown[label == LABELS]) <= 1
            assert np.ptp(now[label == LABELS]) <= 2


def test_no_image_comes_twice_in_a_round():
    """And it misses none before the last one."""
    sampler, shown = BalancedSampler(LABELS, seed=0), set()
    for epoch in range(4):
        sampler.set_epoch(epoch)
        shown |= (pairs := set(zip(*(part.tolist() for part in sampler.order()), strict=True)))
        assert len(pairs) == len(sampler)
    assert len(shown) == 4 * len(sampler)
    for image in range(len(LABELS)):
        rounds = {round_ for i, round_ in shown if i == image}
        assert rounds == set(range(len(rounds)))


def test_a_balanced_epoch_is_a_function_of_seed_and_number():
    assert _balanced(5) == _balanced(5)
    assert _balanced(5) != _balanced(6)
    assert _balanced(5) != _balanced(5, seed=1)
    order = LABELS[_balanced(5)]
    assert any(np.diff(order) < 0)  # classes are mixed


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_a_balanced_epoch(world_size):
    shares = [_balanced(3, rank=rank, world_size=world_size) for rank in range(world_size)]
    together = [index for group in zip(*shares, strict=True) for index in group]
    assert together == _balanced(3)


def test_a_balanced_epoch_can_start_in_its_middle():
    images = _images(len(LABELS))

    def loader():
        batches = EpochBatches(BalancedSampler(LABELS, seed=0), 8, drop_last=True)
        draw = partial(draw_batch, augment=CropFlip(), num_images=len(LABELS), side=4)
        return Loader(MemoryReader(images.pixels, LABELS, draw=draw), batches)

    whole, again = _epoch(loader(), 2), loader()
    again.load_state_dict({"epoch": 2, "done": 3, "num_batches": 7})
    assert _equal(_epoch(again, 2), whole[3:])
