"""Learned rounding: the quadratic form, its descent, and what reaches the file."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import calibrate
from torch import nn

from dwsep_zoo import create_model
from dwsep_zoo.nn.int8 import LARGEST, SCHEMES, layers_of, rounded, step_of
from dwsep_zoo.nn.layers import Conv2dSame
from dwsep_zoo.quantise.bias import rounded_copy
from dwsep_zoo.quantise.quantise import prepared
from dwsep_zoo.quantise.rounding import learned, learned_copy, products

MAKERS = {
    "dense": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "pointwise": lambda: nn.Conv2d(12, 16, 1, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4),
    "grouped": lambda: nn.Conv2d(6, 4, (1, 3), padding=(0, 1), groups=2),
    "same": lambda: Conv2dSame(3, 4, 3, stride=2),
    "linear": lambda: nn.Linear(7, 5),
}


@pytest.fixture(params=MAKERS)
def layer(request):
    torch.manual_seed(0)
    return MAKERS[request.param]()


def _inputs(layer, images=5):
    """Neighbouring values depend on each other, and have a mean, as behind a ReLU."""
    shape = (7,) if isinstance(layer, nn.Linear) else (layer.in_channels, 9, 8)
    x = torch.randn(images, *shape, generator=torch.Generator().manual_seed(0)).relu()
    return x + 0.5 * x.roll(1, 1)


def _error(weight, other, form):
    """The mean square of the difference that two sets of weights make in the outputs, summed."""
    difference = (weight - other).detach().view(len(form), -1, form.shape[1])
    return float((difference @ form * difference).sum())


def test_the_form_is_the_error_of_the_outputs(layer):
    x, other = _inputs(layer), torch.randn_like(layer.weight)
    with torch.no_grad():
        changed = torch.func.functional_call(layer, {"weight": other}, (x,))
        difference = layer(x) - changed
        expected = difference.square().sum() / (difference.numel() / difference.shape[1])
        form = products(layer, x)
    assert _error(layer.weight, other, form) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_beside_the_exact_ones_and_outputs_nearer(layer, scheme):
    weight, form = layer.weight.detach(), products(layer, _inputs(layer))
    step, found = step_of(weight, scheme), learned(weight, form, scheme)
    levels = found / step
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert ((found - weight).abs() < step * 1.001).all()
    assert levels.abs().max() <= LARGEST + 1e-3
    torch.testing.assert_close(step_of(found, scheme), step)
    torch.testing.assert_close(rounded(found, scheme), found)
    assert _error(weight, found, form) < _error(weight, rounded(weight, scheme), form)


def test_it_comes_near_the_best_of_all_choices():
    torch.manual_seed(0)
    x = torch.rand(50, 9) @ torch.rand(9, 9)
    layer = nn.Linear(9, 12)
    weight, form = layer.weight.detach(), products(layer, x)
    step = step_of(weight, "per_channel")
    below, errors = (weight / step).floor(), []
    for turned in itertools.product((0.0, 1.0), repeat=9):
        difference = (below + torch.tensor(turned)) * step - weight
        errors.append(((difference @ form[0]) * difference).sum(1))
    best = float(torch.stack(errors).amin(0).sum())
    nearest = _error(weight, rounded(weight, "per_channel"), form)
    found = _error(weight, learned(weight, form, "per_channel"), form)
    assert best <= found * 1.001
    assert found - best < 0.25 * (nearest - best)


def test_weights_without_inputs_are_rounded_to_the_nearest():
    weight = torch.randn(4, 6)
    found = learned(weight, torch.zeros(1, 6, 6), "per_channel")
    torch.testing.assert_close(found, rounded(weight, "per_channel"))


@pytest.mark.parametrize("conv", ["standard", "depthwise_separable"])
def test_a_network_computes_more_nearly_the_same(conv):
    """Also of pictures that it was not calibrated with."""
    torch.manual_seed(0)
    model = create_model("mobilenet_v1_shallow", conv=conv, width_mult=0.25, num_classes=10)
    coarse = torch.rand(48, 3, 8, 8)
    images = F.interpolate(coarse, size=32, mode="bicubic") * 2 - 1
    calibrate(model, images)
    network = prepared(model, images[:16], equalise=False)
    first, *others = layers_of(network)
    found = learned_copy(network, images[:16], "per_tensor")
    nearest = rounded_copy(network, "per_tensor")
    nearest.get_submodule(first).weight = network.get_submodule(first).weight
    torch.testing.assert_close(
        found.get_submodule(first).weight, network.get_submodule(first).weight
    )
    assert any(
        not torch.equal(found.get_submodule(n).weight, nearest.get_submodule(n).weight)
        for n in others
    )
    with torch.no_grad():
        want = network(images[16:])
        errors = [float((net(images[16:]) - want).square().mean()) for net in (found, nearest)]
    assert errors[0] < 0.97 * errors[1]
