"""Widths of equal cost."""

import time

import pytest
import torch
from helpers import REPRESENTATIVES, slow_unless

from dwsep_zoo import UserError, count, create_model, list_convs, list_models
from dwsep_zoo.analysis import budget
from dwsep_zoo.analysis.budget import TOLERANCE, match_width, nearest_width
from dwsep_zoo.analysis.latency import Latency

SIZE = (3, 64, 64)
QUICK = ("mobilenet_v1", "mobilenet_v3_small", "xception", "efficientnet_lite0")


def cost(quantity, **network):
    with torch.device("meta"):
        return getattr(count(create_model(**network), SIZE), quantity)


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("mobilenet_v1", "params"),
        *(pytest.param(name, "macs", marks=slow_unless(name in QUICK)) for name in REPRESENTATIVES),
    ],
)
def test_the_match_is_what_a_count_says(name, quantity):
    match = match_width(quantity, "standard", SIZE, name=name, conv="depthwise_separable")
    assert match.target == cost(quantity, name=name, conv="standard")
    own = cost(quantity, name=name, conv="depthwise_separable", width_mult=match.width_mult)
    assert match.achieved == own
    assert match.residual == pytest.approx(own / match.target - 1)
    assert abs(match.residual) < TOLERANCE
    assert match.width_mult > 1


@pytest.mark.parametrize("conv", list_convs())
def test_every_conv_type_is_matched_and_no_neighbour_is_nearer(conv):
    network = {"name": "mobilenet_v1_shallow", "conv": conv}
    match = match_width("macs", "standard", SIZE, **network)
    assert nearest(match, "macs", **network)


def nearest(match, quantity, **network):
    """Whether no width near that of the match has a cost nearer to the target."""
    others = (0.97, 0.985, 1.015, 1.03)
    costs = [cost(quantity, **network, width_mult=match.width_mult * f) for f in others]
    return all(abs(c / match.target - 1) >= abs(match.residual) for c in costs)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("quantity", ["macs", "params"])
@pytest.mark.parametrize("conv", ["depthwise_separable", "standard"])
def test_every_model_is_matched_in_seconds(name, quantity, conv):
    to = {"depthwise_separable": "standard", "standard": "depthwise_separable"}[conv]
    begin = time.perf_counter()
    match = match_width(quantity, to, SIZE, name=name, conv=conv)
    assert time.perf_counter() - begin < 10
    assert abs(match.residual) < TOLERANCE or nearest(match, quantity, name=name, conv=conv)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow_unless(name in QUICK)) for name in REPRESENTATIVES]
)
def test_costs_grow_with_the_width(name):
    costs = [cost("macs", name=name, conv="standard", width_mult=0.1 * 1.3**i) for i in range(8)]
    assert costs == sorted(costs)


def test_a_network_that_costs_the_same_keeps_its_width():
    match = match_width("macs", "standard", SIZE, name="mobilenet_v1", conv="standard")
    assert (match.width_mult, match.residual) == (1.0, 0.0)


@pytest.mark.parametrize("target", [0.001, 1, 17.3, 250, 1e5])
def test_the_nearest_step_of_a_staircase(target):
    def staircase(width):
        return max(8, round(width * 10) * 8) ** 2

    width, achieved = nearest_width(staircase, target, 1.0)
    assert achieved == staircase(width)
    steps = [staircase(i / 100) for i in range(1, 6500)]
    # relative to the target the nearest of all, as far as the bracket goes
    assert abs(achieved / target - 1) <= min(abs(s / target - 1) for s in steps) + 1e-9


def test_latency_is_matched_in_turns_with_the_reference(monkeypatch):
    """With a clock for which time is parameters, the answer is that for parameters."""
    calls: list[dict[str, float]] = []

    def clock(models, input_size, **options):
        drift = 1.5 + 0.5 * len(calls)  # of the machine: both networks are slower alike
        times = {k: drift * sum(p.numel() for p in m.parameters()) for k, m in models.items()}
        calls.append(times)
        return {
            k: Latency(p50_ms=t, p10_ms=t, p90_ms=t, runs=1, stable=True) for k, t in times.items()
        }

    monkeypatch.setattr(budget, "measure_latencies", clock)
    network = {"name": "mobilenet_v1", "conv": "standard", "width_mult": 0.25}
    match = match_width("latency", "depthwise_separable", SIZE, **network)
    exact = match_width("params", "depthwise_separable", SIZE, **network)
    assert abs(match.residual) < 0.1
    assert match.width_mult == pytest.approx(exact.width_mult, rel=0.1)
    assert len(calls) <= 16
    assert {tuple(times) for times in calls} == {("target", "own")}
    # What is recorded was measured after the choice: the machine was slower then than ever before.
    assert (match.target, match.achieved) == tuple(calls[-1].values())


@pytest.mark.parametrize("match", ["mac", "latencies"])
def test_an_unknown_quantity_is_refused(match):
    with pytest.raises(UserError, match=f"unknown match '{match}'; did you mean"):
        match_width(match, "standard", SIZE, name="mobilenet_v1")
