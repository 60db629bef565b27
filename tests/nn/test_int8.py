"""Simulated int8 against a folded network whose tensors are rounded by NumPy."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import REPRESENTATIVES
from torch import nn

from dwsep_zoo import create_model, list_convs
from dwsep_zoo.nn.fuse import fold_norms
from dwsep_zoo.nn.int8 import SCHEMES, Simulated, layers_of

SIZE = (3, 32, 32)


def network(name="mobilenet_v1", **options):
    """A small network whose norms have uneven statistics, as training leaves them."""
    torch.manual_seed(0)
    options = {"num_classes": 10, "width_mult": 0.25, "output_stride": 8, **options}
    model = create_model(name, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.1, 4)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


def images(count=8):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(1))


def round_weight(weight, scheme):
    w = weight.detach().double().numpy()
    axes = tuple(range(1, w.ndim)) if scheme == "per_channel" else None
    step = np.abs(w).max(axis=axes, keepdims=True) / 127
    return torch.from_numpy(np.round(w / step) * step).float(), torch.from_numpy(step)


def round_input(x, low, high):
    step = (high - low) / 255
    zero = round(-low / step)
    levels = np.clip(np.round(x.double().numpy() / step) + zero, 0, 255)
    return torch.from_numpy((levels - zero) * step).float(), torch.tensor(step)


def assert_rounded(got, want, step):
    errors = (got.detach() - want).abs() / step
    assert (errors > 1e-3).double().mean() < 1e-3  # numbers on the border between two levels
    assert errors.max() < 1.001


def simulated(model, scheme, x):
    found = Simulated(model, scheme, SIZE)
    found.ranges = found.calibrate([x])
    return found


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_every_layer_gets_rounded_numbers(name):
    """And a range that holds all inputs of the float network, and zero."""
    model, x = network(name), images(4)
    layers = layers_of(model)
    before, seen = {}, {}
    for layer in layers.values():
        layer.register_forward_pre_hook(lambda m, inputs: before.__setitem__(m, inputs[0]))
    with torch.no_grad():
        model(x)
        ranges = [(min(y.min().item(), 0), max(y.max().item(), 0)) for y in before.values()]
        found = simulated(model, "per_channel", x)
    order = [*layers.values()]
    torch.testing.assert_close(
        found.ranges[[order.index(layer) for layer in before]], torch.tensor(ranges)
    )

    def look(layer, inputs, y):
        seen[layer] = inputs[0], layer.weight.clone(), before[layer]

    for layer in order:
        layer.register_forward_hook(look)
    with torch.no_grad():
        found(x)
    assert len(seen) == len(layers)
    for number, layer in enumerate(order):
        rounded, weight, raw = seen[layer]
        assert_rounded(weight, *round_weight(layer.weight, "per_channel"))
        assert_rounded(rounded, *round_input(raw, *found.ranges[number].tolist()))


@pytest.mark.parametrize("conv", list_convs())
@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounded_weights_are_those_of_the_folded_network(conv, scheme):
    model = network(conv=conv)
    found = Simulated(model, scheme, SIZE)
    folded = copy.deepcopy(model)
    fold_norms(folded, SIZE)
    for name, layer in layers_of(folded).items():
        weight, scale = found._rounded(name), found._scale(name)
        if scheme == "per_channel":  # the norm's scale comes behind it
            continue
        got = weight if scale is None else weight * scale
        assert_rounded(got, *round_weight(layer.weight, scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_pass_through_the_rounding_of_weights(scheme):
    model, x = network(), images()
    found = simulated(model, scheme, x)
    F.cross_entropy(found(x), torch.arange(len(x))).backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())

    rounded = copy.deepcopy(model)
    for name, layer in layers_of(rounded).items():
        layer.weight.data = found._rounded(name).detach()
        layer.weight.grad = None
    again = Simulated(rounded, scheme, SIZE)
    again.ranges = found.ranges
    again._rounded = lambda name: again.layers[name].weight
    rounded.zero_grad()
    F.cross_entropy(again(x), torch.arange(len(x))).backward()
    for name, parameter in rounded.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_the_network_stays_as_it_is():
    model, x = network(drop_rate=0.5), images()
    before = copy.deepcopy(model.state_dict())
    model.train()
    found = simulated(model, "per_tensor", x)
    assert all(module.training for module in model.modules())
    model.eval()
    found(x)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_training_repairs_what_rounding_destroys():
    """A channel whose weights are large takes the levels of the others, until they are trained."""
    x = torch.randn(256, 1, 8, 8)
    y = (x[:, 0, :, :4].sum((1, 2)) > x[:, 0, :, 4:].sum((1, 2))).long()
    depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    norm, classifier = nn.BatchNorm2d(8), nn.Linear(512, 2)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(depthwise, norm, nn.ReLU(), nn.Flatten(), classifier),
    )

    def fit(forward, rate):
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(forward(x), y).backward()
            optimizer.step()

    fit(model, 1e-2)
    model.eval()
    with torch.no_grad():  # a wide channel that nobody hears
        norm.weight[0] *= 300
        classifier.weight[:, :64] = 0
    found = Simulated(model, "per_tensor", (1, 8, 8))

    def loss(forward):
        found.ranges = found.calibrate([x])
        with torch.no_grad():
            return float(F.cross_entropy(forward(x), y))

    exact, before = loss(model), loss(found)
    fit(found, 1e-2)
    assert before > 0.6
    assert exact < 0.2
    assert loss(found) < 0.3
