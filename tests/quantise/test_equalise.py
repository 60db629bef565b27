"""Equalised networks compute what they did; corrected ones keep their means."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import calibrate
from torch import Tensor, nn

from dwsep_zoo import create_model
from dwsep_zoo.models import ConvNet
from dwsep_zoo.nn.int8 import SCHEMES, layers_of, rounded
from dwsep_zoo.nn.layers import is_depthwise
from dwsep_zoo.quantise import culprit, diagnose
from dwsep_zoo.quantise.bias import channel_means, correct_biases, observe, rounded_copy
from dwsep_zoo.quantise.equalise import Ceiling, equalise, fold
from dwsep_zoo.quantise.layers import (
    add_bias,
    alive,
    find_pairs,
    input_ranges,
    output_ranges,
    response,
    scale_inputs,
    scale_outputs,
)

SIZE = 32
NETWORKS = [
    *[("mobilenet_v1", conv) for conv in ("depthwise_separable", "standard")],
    *[("mobilenet_v2", conv) for conv in ("depthwise_separable", "standard")],
    ("mobilenet_v3_small", "depthwise_separable"),
    ("efficientnet_lite0", "depthwise_separable"),
    *[("xception", conv) for conv in ("depthwise_separable", "standard")],
]


def network(name: str, conv: str = "depthwise_separable") -> tuple[ConvNet, Tensor]:
    """A narrow network with statistics, its norms of unequal channels, and images."""
    model = create_model(name, conv=conv, num_classes=7, width_mult=0.25)
    x = torch.randn(6, 3, SIZE, SIZE)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0.5, 0.5)
            module.weight.data = torch.rand_like(module.weight) + 0.1
    calibrate(model, x)
    return model, x


def folded(name: str, conv: str = "depthwise_separable") -> tuple[nn.Module, Tensor]:
    model, x = network(name, conv)
    fold(model, x.shape[1:])
    return model, x


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x)


def noise(got: Tensor, want: Tensor) -> float:
    """Relative to the differences between images, not to what all have in common."""
    return float((got - want).norm() / (want - want.mean(0)).norm())


@pytest.mark.parametrize(("name", "conv"), NETWORKS)
def test_equalising_changes_weights_and_no_outputs(name, conv):
    model, x = folded(name, conv)
    before, weights = run(model, x), {n: m.weight.clone() for n, m in layers_of(model).items()}
    pairs = equalise(model, x)
    torch.testing.assert_close(run(model, x), before, rtol=1e-4, atol=1e-5 * before.abs().max())
    changed = {n for n, m in layers_of(model).items() if not torch.equal(m.weight, weights[n])}
    assert pairs
    assert changed
    assert changed <= {name for pair in pairs for name in (pair.first, pair.second)}


@pytest.mark.parametrize("ceilings", [False, True])
def test_ranges_are_equal_afterwards(ceilings):
    model, x = folded("mobilenet_v1" if not ceilings else "efficientnet_lite0")
    before = run(model, x)
    pairs, layers = equalise(model, x, ceilings=ceilings), layers_of(model)
    torch.testing.assert_close(run(model, x), before, rtol=1e-4, atol=1e-5 * before.abs().max())
    assert any(isinstance(module, Ceiling) for module in model.modules()) == ceilings
    for pair in pairs:
        r1, r2 = output_ranges(layers[pair.first]), input_ranges(layers[pair.second])
        both = alive(r1) & alive(r2)
        torch.testing.assert_close(r1[both], r2[both], rtol=1e-2, atol=0)


def test_channels_that_reach_six_keep_their_scale():
    model, x = folded("mobilenet_v2")
    first = find_pairs(model)[0].first
    reach = torch.zeros(len(layers_of(model)[first].weight), dtype=torch.bool)
    reach[::2] = True
    add_bias(layers_of(model)[first], torch.where(reach, 9.0, -0.2))
    before, weight = run(model, x), layers_of(model)[first].weight.clone()
    equalise(model, x)
    assert torch.equal(layers_of(model)[first].weight[reach], weight[reach])
    torch.testing.assert_close(run(model, x), before, rtol=1e-4, atol=1e-5 * before.abs().max())


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small", "efficientnet_lite0"])
def test_no_pair_crosses_a_shortcut_a_gate_or_another_activation(name):
    model, x = folded(name)
    pairs, want = find_pairs(model), run(model, x)
    for pair in pairs:
        scaled = copy.deepcopy(model)
        layers = layers_of(scaled)
        # Half the channel, then twice of it: exact in float, if nothing else sees the channel.
        factors = torch.full((len(output_ranges(layers[pair.first])),), 0.5)
        scale_outputs(layers[pair.first], factors)
        scale_inputs(layers[pair.second], 1 / factors)
        for between in pair.between:
            if isinstance(scaled.get_submodule(between), nn.ReLU6):
                parent, _, own = between.rpartition(".")
                setattr(scaled.get_submodule(parent), own, Ceiling(6 * factors))
        assert torch.equal(run(scaled, x), want), pair
    assert len({pair.first for pair in pairs}) == len(pairs) > 3


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_inputs_are_scaled_by_their_own_channel(groups):
    layer = nn.Conv2d(8, 16, 1, groups=groups)
    x, factors = torch.randn(2, 8, 3, 3), torch.rand(8) + 0.5
    want = run(layer, x)
    constant = run(layer, factors.view(1, 8, 1, 1))[0, :, 0, 0] - layer.bias
    torch.testing.assert_close(response(layer, factors), constant, rtol=1e-4, atol=1e-5)
    scale_inputs(layer, factors)
    torch.testing.assert_close(run(layer, x / factors.view(1, 8, 1, 1)), want)
    for channel in range(8):
        only = torch.zeros(1, 8, 1, 1)
        only[0, channel] = 1
        largest = (run(layer, only)[0, :, 0, 0] - layer.bias).abs().max()
        torch.testing.assert_close(input_ranges(layer)[channel], largest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounded_weights_are_255_levels_around_zero(scheme):
    weight = torch.randn(6, 4, 3, 3) * torch.logspace(-2, 1, 6).view(6, 1, 1, 1)
    got = rounded(weight, scheme)
    parts = got if scheme == "per_channel" else [got]
    for part, original in zip(parts, weight if scheme == "per_channel" else [weight], strict=True):
        step = original.abs().max() / 127
        torch.testing.assert_close(part / step, (part / step).round(), rtol=0, atol=1e-3)
        assert (part - original).abs().max() <= step * 0.501
    assert torch.equal(rounded(torch.zeros(3, 3), scheme), torch.zeros(3, 3))


def test_high_biases_are_absorbed_where_they_always_pass():
    model, x = network("mobilenet_v1")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data[::2] = 8 * module.weight.data.abs()[::2]
    calibrate(model, x)
    without = copy.deepcopy(model)
    fold(without, x.shape[1:])
    statistics = fold(model, x.shape[1:])
    equalise(without, x)
    equalise(model, x, statistics)
    before, layers = run(without, x), layers_of(model)
    torch.testing.assert_close(run(model, x), before, rtol=1e-4, atol=1e-5 * before.abs().max())
    for pair in find_pairs(model):
        absorbed = layers_of(without)[pair.first].bias - layers[pair.first].bias
        if layers[pair.second].weight[0, 0].numel() == 1:
            assert (absorbed > 0).sum() >= len(absorbed) // 4


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "xception"])
def test_corrected_biases_keep_the_mean_of_every_channel(name, scheme):
    model, x = folded(name)
    wanted: dict[str, Tensor] = {}
    got: dict[str, Tensor] = {}
    observe(model, x, lambda n, _, y: wanted.update({n: channel_means(y)}))
    correct_biases(model, x, scheme)
    observe(rounded_copy(model, scheme), x, lambda n, _, y: got.update({n: channel_means(y)}))
    for layer, mean in wanted.items():
        torch.testing.assert_close(got[layer], mean, rtol=1e-3, atol=1e-4 * mean.abs().max())


def test_a_badly_scaled_network_collapses_per_tensor_and_is_repaired_and_diagnosed():
    model, x = folded("mobilenet_v1")
    want = run(model, x)
    depthwise = [n for n, m in layers_of(model).items() if is_depthwise(m)]
    pairs = {pair.first: pair.second for pair in find_pairs(model)}
    healthy = noise(run(rounded_copy(model, "per_tensor"), x), want)
    for name in depthwise:
        factors = 2.0 ** torch.randint(0, 7, (len(output_ranges(layers_of(model)[name])),))
        scale_outputs(layers_of(model)[name], factors)
        scale_inputs(layers_of(model)[pairs[name]], 1 / factors)
    assert torch.equal(run(model, x), want)  # powers of two are exact
    bad = noise(run(rounded_copy(model, "per_tensor"), x), want)
    per_channel = noise(run(rounded_copy(model, "per_channel"), x), want)
    worst = culprit(diagnose(model, x))
    assert worst.kind in ("depthwise", "pointwise")
    assert worst.spread > 16
    assert worst.decibels["per_channel"] > worst.decibels["per_tensor"] + 10
    equalise(model, x)
    repaired = noise(run(rounded_copy(model, "per_tensor"), x), want)
    assert bad > 0.5
    assert repaired < min(bad / 3, 1.5 * healthy)
    assert per_channel < bad


def test_a_dead_channel_is_left_alone():
    model, x = folded("mobilenet_v1")
    pair = find_pairs(model)[0]
    first = layers_of(model)[pair.first]
    with torch.no_grad():
        first.weight[0] = 1e-9
        first.bias[0] = 2.0
    before = run(model, x)
    equalise(model, x)
    assert layers_of(model)[pair.first].bias[0].item() == 2.0
    torch.testing.assert_close(run(model, x), before, rtol=1e-4, atol=1e-5 * before.abs().max())
