"""The protocol and its statistics on machines whose moods are known; then on this one."""

from __future__ import annotations

import copy
import time
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from dwsep_zoo import UserError
from dwsep_zoo.analysis.latency import (
    COMPARE_TURNS,
    WARM_MAX_S,
    autocorrelation,
    compare_latency,
    compare_turns,
    is_stable,
    measure_latencies,
    measure_latency,
    take_turns,
    time_models,
    timer_for,
)
from dwsep_zoo.analysis.runtimes import Workload

BASE = 0.004  # seconds


class Machine:
    """A clock for runs that return the seconds they take on a quiet machine.

    Attributes:
        noise: of each run, relative.
        wander: of the speed from run to run; it keeps 99 % of what it was.
        drift: of the speed in one second.
        spikes: share of runs that take three times as long.
    """

    def __init__(self, seed=0, *, noise=0.0, wander=0.0, drift=0.0, spikes=0.0):
        self.random = np.random.default_rng(seed)
        self.noise, self.wander, self.drift, self.spikes = noise, wander, drift, spikes
        self.mood = self.now = 0.0

    def clock(self, run):
        self.mood = 0.99 * self.mood + self.wander * self.random.standard_normal()
        slowness = np.exp(self.mood + self.noise * self.random.standard_normal())
        if self.random.random() < self.spikes:
            slowness *= 3
        seconds = run() * slowness * (1 + self.drift * self.now)
        self.now += seconds
        return seconds


def restless(seed):
    return Machine(seed, noise=0.03, wander=0.01, drift=0.2, spikes=0.02)


def compared(machine, ratio, min_run_time=1.0):
    runs = [lambda: BASE, lambda: BASE * ratio]
    return compare_turns(*take_turns(runs, machine.clock, min_run_time, COMPARE_TURNS))


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.0, "no difference"), (1.1, "slower"), (1 / 1.1, "faster")]
)
def test_a_difference_of_a_tenth_is_found_and_none_is_not(ratio, verdict):
    verdicts = [compared(restless(seed), ratio).verdict for seed in range(20)]
    assert verdicts == [verdict] * 20


def test_the_interval_covers_the_ratio_as_often_as_it_says():
    comparisons = [compared(restless(seed), 1.3, min_run_time=0.3) for seed in range(200)]
    shown = [c for c in comparisons if c.low is not None]
    assert len(shown) > 100
    assert sum(c.low <= 1.3 <= c.high for c in shown) >= 0.98 * len(shown)
    assert all(c.low <= c.ratio <= c.high for c in shown)
    assert np.median([c.high / c.low for c in shown]) < 1.1


@pytest.mark.parametrize(("correlation", "shown"), [(0.0, 0.98), (0.5, 0.85), (0.9, 0.0)])
def test_correlated_turns_do_not_mislead(correlation, shown):
    random, trials = np.random.default_rng(1), 300
    noise = random.standard_normal((trials, 200 + COMPARE_TURNS))
    found = []
    for series in noise:
        for i in range(1, len(series)):
            series[i] = correlation * series[i - 1] + (1 - correlation**2) ** 0.5 * series[i]
        ratios = np.exp(0.02 * series[200:, None])
        found.append(compare_turns(np.ones_like(ratios).tolist(), ratios.tolist()))
    intervals = [c for c in found if c.low is not None]
    assert len(intervals) >= shown * trials
    assert len(intervals) >= trials / 20 or correlation > 0.8
    assert sum(not c.low <= 1 <= c.high for c in intervals) <= 0.015 * trials


@pytest.mark.parametrize(("patience", "steady"), [(0.0, False), (60.0, True)])
def test_a_busy_machine_is_waited_for(monkeypatch, patience, steady):
    machine, attempts = Machine(noise=0.5), []

    def clock(run):
        return machine.clock(lambda: BASE)

    def sleep(seconds):
        attempts.append(seconds)
        machine.noise = 0.0 if len(attempts) == 3 else machine.noise

    monkeypatch.setattr("dwsep_zoo.analysis.latency.timer_for", lambda device: clock)
    monkeypatch.setattr(time, "sleep", sleep)
    models = {"a": blocks(1), "b": blocks(1)}
    timings = time_models(models, (32, 8, 8), Workload(), patience=patience)
    assert [t.latency.stable for t in timings.values()] == [steady] * 2
    assert len(attempts) == (3 if steady else 0)


def test_few_turns_have_no_interval():
    series = [[1.0], [1.1]] * COMPARE_TURNS
    ones = [[1.0]] * len(series)
    few = compare_turns(ones[: COMPARE_TURNS - 1], series[: COMPARE_TURNS - 1])
    assert (few.low, few.high, few.verdict) == (None, None, "unclear")
    assert compare_turns(ones, series).low is not None


@pytest.mark.parametrize("n", [72, 500])
def test_autocorrelation(n):
    random = np.random.default_rng(0)
    assert abs(autocorrelation(random.standard_normal(n))) < 0.3
    assert autocorrelation(list(range(n))) > 0.9
    assert autocorrelation([sign * i for i in range(n // 2) for sign in (1, -1)]) < -0.9
    assert autocorrelation([2.0] * n) == 0


def test_a_real_but_small_difference_is_none():
    comparison = compared(Machine(), 1.02)
    assert comparison.low == pytest.approx(1.02)
    assert comparison.verdict == "no difference"


def test_a_steady_drift_cancels():
    assert compared(Machine(drift=0.5), 1.0).ratio == pytest.approx(1, abs=1e-3)
    a, b = take_turns([lambda: BASE] * 2, Machine(drift=0.5).clock, 1.0)
    unpaired = np.median(np.concatenate(b[12:])) / np.median(np.concatenate(a[:12]))
    assert unpaired > 1.1  # what measuring one after the other would have said


def test_the_other_way_round_is_the_reciprocal():
    runs = [lambda: BASE, lambda: BASE * 1.2]
    a, b = take_turns(runs, Machine(noise=0.03, spikes=0.02).clock, 0.5, COMPARE_TURNS)
    one, other = compare_turns(a, b), compare_turns(b, a)
    assert one.ratio * other.ratio == pytest.approx(1)
    assert (one.low * other.high, one.high * other.low) == pytest.approx((1, 1))


def test_networks_take_turns_forward_and_backward():
    calls = []

    def clock(run):
        calls.append(run())
        return 0.1

    turns = take_turns([lambda: "a", lambda: "b", lambda: "c"], clock, 0.5)
    assert "".join(calls).endswith("aabbccccbbaa" * 12)  # each counted run after a lead-in
    assert [len(turn) for network in turns for turn in network] == [2] * 12 * 3


@pytest.mark.parametrize(("networks", "seconds"), [(1, 0.1), (2, 0.3)])
def test_no_lead_in_where_caches_do_not_matter(networks, seconds):
    counter = Counter()

    def clock(run):
        counter[run()] += 1
        return seconds

    warm_up = Counter()
    take_turns([lambda i=i: i for i in range(networks)], clock, 0.5)
    warm_up.update({i: counter[i] - 24 for i in range(networks)})
    assert all(2 <= n <= 4 for n in warm_up.values())


def test_each_network_is_measured_for_the_time_asked():
    a, b = take_turns([lambda: 0.001, lambda: 0.02], Machine().clock, 2.0)
    assert len(a) == len(b)
    assert sum(map(sum, a)) + sum(map(sum, b)) >= 4.0
    assert sum(map(sum, a)) == pytest.approx(sum(map(sum, b)))


def test_cold_runs_are_not_counted():
    runs = iter(BASE * (1 + 20 * 0.7**i) for i in range(10**6))
    (turns,) = take_turns([lambda: next(runs)], Machine().clock, 0.5)
    assert max(map(max, turns)) < 1.05 * BASE


def test_the_warm_up_ends_also_if_the_times_never_settle():
    machine = Machine()
    runs = iter(0.02 * 1.1 ** (i % 7) for i in range(10**6))
    take_turns([lambda: next(runs)], machine.clock, 0.1)
    assert machine.now < WARM_MAX_S + 24 * 0.04 + 0.1


@pytest.mark.parametrize(
    ("turns", "stable"),
    [
        ([[1.0, 1.0]] * 12, True),
        ([[0.9, 1.0, 1.1]] * 12, True),
        ([[1.0]] * 6 + [[1.06]] * 6, False),  # drift
        ([[0.8, 1.0, 1.2]] * 12, False),  # spread
        ([[1.0]] * 99 + [[50.0]], True),  # one spike
    ],
)
def test_stable(turns, stable):
    assert is_stable(turns) is stable


def blocks(number):
    """The same convolution ``number`` times: so many times the work, and nothing else."""
    return nn.Sequential(*[nn.Conv2d(32, 32, 3, padding=1)] * number)


def test_a_latency_and_its_conditions():
    threads = torch.get_num_threads()
    latency = measure_latency(blocks(1), (32, 8, 8), batch_size=2, threads=2, min_run_time=0.02)
    assert 0 < latency.p10_ms <= latency.p50_ms <= latency.p90_ms
    assert latency.runs >= 24
    assert (latency.threads, latency.batch_size, latency.device) == (2, 2, "cpu")
    assert latency.device_name
    assert (latency.precision, latency.memory_format) == ("fp32", "channels_last")
    assert torch.get_num_threads() == threads


def test_the_network_stays_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model[1].eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    measure_latency(model, (3, 8, 8), min_run_time=0.01, precision="bf16")
    assert torch.equal(torch.get_rng_state(), random)  # what is trained next does not change
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert model[0].weight.is_contiguous()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_four_times_the_work_is_slower():
    light, heavy = blocks(2), blocks(8)
    comparison = compare_latency(light, heavy, (32, 32, 32), min_run_time=0.1)
    assert comparison.verdict == "slower"
    assert comparison.ratio > 2
    models = {"light": light, "heavy": heavy}
    latencies = measure_latencies(models, (32, 32, 32), min_run_time=0.1)
    assert latencies["heavy"].p50_ms > 2 * latencies["light"].p50_ms
    assert list(latencies) == ["light", "heavy"]


def test_the_percentiles_are_of_single_runs():
    timing = time_models({"a": blocks(1)}, (32, 8, 8), Workload(), min_run_time=0.02)["a"]
    times = [time for turn in timing.turns for time in turn]
    assert timing.latency.runs == len(times)
    assert timing.latency.p50_ms == pytest.approx(np.median(times))


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"runtime": "tflite"}, "unknown runtime 'tflite'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"memory_format": "nchw"}, "unknown memory_format 'nchw'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"threads": 0}, "threads must be at least 1; got 0"),
        ({"min_run_time": 0}, "min_run_time must be greater than 0; got 0"),
    ],
)
def test_messages(conditions, message):
    with pytest.raises(UserError, match=message):
        measure_latency(blocks(1), (32, 8, 8), **conditions)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_is_waited_for():
    x = torch.randn(4096, 4096, device="cuda")
    clock = timer_for(x.device)
    clock(lambda: x @ x)
    once, eight = (clock(lambda n=n: [x @ x for _ in range(n)]) for n in (1, 8))
    assert eight > 4 * once


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_no_gpu():
    with pytest.raises(UserError, match="device=cuda: PyTorch finds no CUDA device here"):
        measure_latency(blocks(1), (32, 8, 8), device="cuda")
