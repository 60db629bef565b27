"""Memory against sums made by hand, and against tensors with contents."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dwsep_zoo import UserError, create_model
from dwsep_zoo.analysis.memory import (
    _LiveTensors,
    inference_memory,
    state_dict_bytes,
    training_memory,
)

FLOAT = 4  # bytes


@pytest.mark.parametrize("batch", [1, 5])
def test_inference_by_hand(batch):
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    weights, x, hidden = 12 + 8, 3 * 64 * batch, 4 * 64 * batch
    # the peak is at the activation: its input and its output live at the same time
    assert inference_memory(model, (3, 8, 8), batch_size=batch) == FLOAT * (
        weights + x + 2 * hidden
    )


def test_an_activation_in_place_takes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(inplace=True))
    assert inference_memory(model, (3, 8, 8)) == FLOAT * (12 + 3 * 64 + 4 * 64)


def test_training_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Flatten())
    weights, x, logits, label = 12, 3 * 64, 4 * 64, 8
    # logits, their log-softmax, and the gradients of both; the loss and its gradient
    want = FLOAT * (weights + x + 4 * logits + 2) + label
    assert training_memory(model, (3, 8, 8)) == want


def test_shared_weights_count_once():
    conv = nn.Conv2d(4, 4, 1, bias=False)
    once, twice = (nn.Sequential(*[conv] * n) for n in (1, 2))
    assert inference_memory(once, (4, 1, 1)) == FLOAT * (16 + 4 + 4)
    assert inference_memory(twice, (4, 1, 1)) == FLOAT * (16 + 4 + 4 + 4)


@pytest.mark.parametrize("training", [False, True])
def test_tensors_with_contents_take_the_same(training):
    model = create_model("mobilenet_v3_small", width_mult=0.5, num_classes=10)
    size = (3, 64, 64)
    memory = training_memory if training else inference_memory
    want = memory(model, size, batch_size=2)
    real = copy.deepcopy(model).train(training)
    with _LiveTensors() as live, torch.set_grad_enabled(training):
        live.add([*real.parameters(), *real.buffers()])
        output = real(torch.randn(2, *size))
        if training:
            F.cross_entropy(output, torch.zeros(2, dtype=torch.int64)).backward()
    assert live.peak == pytest.approx(want, abs=64)  # scalars come and go


def test_the_network_stays_as_it_is():
    model = create_model("mobilenet_v2", width_mult=0.25, num_classes=10, drop_path_rate=0.1)
    model.head.eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    training_memory(model, (3, 64, 64))
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert not model.head.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_one_value_per_channel_cannot_be_trained():
    model = create_model("mobilenet_v1", width_mult=0.25, num_classes=10)
    with pytest.raises(UserError, match="a batch of 1 of 3 x 32 x 32 cannot be trained"):
        training_memory(model, (3, 32, 32))
    assert training_memory(model, (3, 32, 32), batch_size=2) > 0


def test_training_keeps_what_the_separable_network_has_more_of():
    """It saves weights; its activations, two of each instead of one, it has to keep."""
    with torch.device("meta"):
        standard, separable = (
            create_model("mobilenet_v2", conv=conv) for conv in ("standard", "depthwise_separable")
        )
    size = (3, 96, 96)
    assert inference_memory(separable, size) < inference_memory(standard, size)
    assert training_memory(separable, size, batch_size=32) > training_memory(
        standard, size, batch_size=32
    )


def test_size_on_disk():
    model = create_model("mobilenet_v2", width_mult=0.35)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    assert state_dict_bytes(model) == pytest.approx(file.tell(), rel=0.03)
