"""Training steps as CUDA graphs: when they are recorded, and that they compute the same."""

from __future__ import annotations

import copy
import gc
import logging
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dwsep_zoo import create_model
from dwsep_zoo.training import cuda_graphs
from dwsep_zoo.training.cuda_graphs import graphed_forward, unchanged


@pytest.fixture
def captured(monkeypatch):
    """The shapes that a graph would be recorded for; nothing is."""
    shapes = []
    monkeypatch.setattr(
        cuda_graphs, "capture", lambda network, x: shapes.append(tuple(x.shape)) or network
    )
    return shapes


def test_a_size_of_images_is_recorded_when_it_comes(captured):
    forward = graphed_forward(nn.Conv2d(3, 4, 1))
    for side in (8, 8, 16, 16):
        forward(torch.randn(2, 3, side, side))
    assert captured == [(2, 3, 8, 8), (2, 3, 16, 16)]


def test_only_the_last_size_is_kept(monkeypatch):
    """The graphs of another one hold as much memory as a step needs."""
    alive = weakref.WeakSet()

    def capture(network, x):
        alive.add(copied := copy.deepcopy(network))
        return copied

    monkeypatch.setattr(cuda_graphs, "capture", capture)
    forward = graphed_forward(nn.Conv2d(3, 4, 1))
    for side in (8, 16, 24):
        forward(torch.randn(2, 3, side, side))
        gc.collect()
        assert len(alive) == 1


def test_hooks_are_called_in_every_step(captured):
    network, heard = nn.Sequential(nn.Conv2d(3, 4, 1)), []
    forward, x = graphed_forward(network), torch.randn(2, 3, 8, 8)
    forward(x)
    hook = network[0].register_forward_hook(lambda *args: heard.append(args))
    forward(x)
    forward(x)
    assert len(heard) == 2
    hook.remove()
    forward(x)
    assert captured == [(2, 3, 8, 8)]


def test_without_gradients_nothing_is_recorded(captured):
    with torch.no_grad():
        graphed_forward(nn.Conv2d(3, 4, 1))(torch.randn(2, 3, 8, 8))
    assert captured == []


def test_what_is_frozen_or_evaluated_later_is_recorded_again(captured):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    forward, x = graphed_forward(network), torch.randn(2, 3, 8, 8)
    forward(x)
    network[0].requires_grad_(False)
    forward(x)
    network[1].eval()
    forward(x)
    forward(x)
    assert len(captured) == 3


def test_where_it_is_impossible_the_log_says_so_once(monkeypatch, caplog):
    def broken(network, x):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(cuda_graphs, "capture", broken)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    network, x = nn.Conv2d(3, 4, 1), torch.randn(2, 3, 8, 8)
    forward = graphed_forward(network)
    with caplog.at_level(logging.WARNING, "dwsep_zoo"):
        for _ in range(3):
            assert torch.equal(forward(x), network(x))
    assert [r.message for r in caplog.records] == [
        "training steps: not as CUDA graphs: "
        "RuntimeError: operation not permitted when stream is capturing"
    ]


def test_no_memory_is_no_reason_to_go_on(monkeypatch):
    def hungry(network, x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda_graphs, "capture", hungry)
    with pytest.raises(torch.OutOfMemoryError):
        graphed_forward(nn.Conv2d(3, 4, 1))(torch.randn(2, 3, 8, 8))


def test_statistics_and_random_numbers_are_given_back():
    norm, x = nn.BatchNorm2d(3), torch.randn(2, 3, 4, 4)
    before, state = copy.deepcopy(norm.state_dict()), torch.get_rng_state()
    with unchanged(norm):
        norm(x)
        torch.randn(1)
    assert all(torch.equal(norm.state_dict()[key], before[key]) for key in before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_equals_eager_steps(name, dtype, tolerance, monkeypatch):
    """Three steps of two sizes of images, with what they leave in the network.

    In a graph cuBLAS may split sums differently, which bfloat16 and three steps make visible.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def train(graphs):
        torch.manual_seed(0)
        model = create_model(name, num_classes=10, width_mult=0.25, drop_rate=0.0).cuda()
        model.to(memory_format=torch.channels_last)
        forward = graphed_forward(model) if graphs else model
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, fused=True)
        for step in range(3):
            x = torch.randn(8, 3, 64 - 32 * (step % 2), 64 - 32 * (step % 2), device="cuda")
            with torch.autocast("cuda", torch.bfloat16, enabled=dtype is torch.bfloat16):
                logits = forward(x.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), torch.arange(8, device="cuda"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.state_dict()

    for (key, a), b in zip(train(True).items(), train(False).values(), strict=True):
        error = (a.double() - b.double()).norm() / (b.double().norm() + 1e-3)
        assert error < tolerance, key
