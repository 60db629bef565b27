"""The time of networks for one batch, and the faster of two.

A machine's speed changes from second to second. Networks are therefore measured in turns, a few
milliseconds each, forward and backward through their list (A B B A): changes of speed hit all of
them alike, and a ratio taken within a turn is free of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dwsep_zoo.analysis.count import common_shape
from dwsep_zoo.analysis.device import device_clock, device_name, torch_threads
from dwsep_zoo.analysis.runtimes import OWN_FORMAT, RUNTIMES, Inference, Workload, prepare
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.record import LatencyRecord

BLOCK_S = 0.02  # a network's time before it is another one's turn
LEAD_IN_S = 0.2  # shorter runs are preceded by one that is not counted and fills the caches
BATCHES = 12  # of turns, for the interval
COMPARE_TURNS = 72  # in fewer, correlation cannot be told from chance
CORRELATED = 0.65  # of neighbouring turns; above it, batches of them are correlated as well
COMPARE_S = 3.0
PAUSE_S = 1.0  # before another attempt on a busy machine
WARM_S, WARM_MAX_S = 0.1, 1.0
WARM = 0.03  # change from one warm-up block to the next below which a network is warm
DRIFT = 0.05  # change of the median from the first half of the turns to the second
SPREAD = 0.3  # (p90 - p10) / p50
INDIFFERENCE = 0.03  # a smaller difference is none: memory placement alone moves this much

Timer = Callable[[Inference], float]
"""Runs one inference and returns its seconds."""


class Latency(LatencyRecord):
    """Time for one batch, in milliseconds, with the conditions of the measurement.

    Attributes:
        runs: number of timed runs; the percentiles are over single runs.
        stable: the median moved by less than 5 % from the first half of the turns to the second,
            and the distance from p10 to p90 is less than 30 % of the median.
        device: ``cpu`` or ``cuda``.
        threads: number of CPU threads.
        memory_format: ``own layout`` if the runtime chooses it.
    """

    p50_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    stable: bool


@dataclass(frozen=True)
class Timing:
    """A latency and the milliseconds of each turn behind it."""

    latency: Latency
    turns: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LatencyComparison:
    """Latency of ``b`` relative to ``a``, with a 99 % interval.

    Attributes:
        low: end of the interval; ``None``: the turns do not allow one, see :func:`compare_turns`.
        high: likewise.
        verdict: of ``b``: ``slower`` or ``faster`` if the interval excludes 1 and the ratio is
            more than 3 % away from it; ``unclear`` without an interval; else ``no difference``.
    """

    ratio: float
    low: float | None
    high: float | None
    verdict: str

    def text(self, digits: int = 2) -> str:
        """The ratio with its interval, ``1.30 [1.25, 1.34]``."""
        if self.low is None or self.high is None:
            return f"{self.ratio:.{digits}f}"
        return f"{self.ratio:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def measure_latency(
    model: nn.Module, input_size: Sequence[int] | None = None, **conditions: Any
) -> Latency:
    """Time inference on random input; arguments as in :func:`measure_latencies`.

    Raises:
        UserError: for conditions that cannot be measured here.
    """
    return measure_latencies({"model": model}, input_size, **conditions)["model"]


def measure_latencies(
    models: Mapping[str, nn.Module],
    input_size: Sequence[int] | None = None,
    *,
    min_run_time: float = 1.0,
    **conditions: Any,
) -> dict[str, Latency]:
    """Time inference of several networks in turns.

    Args:
        models: by name; each takes ``(N, C, H, W)`` and stays as it is.
        input_size: ``(C, H, W)``; ``None``: the networks' own.
        min_run_time: seconds of measuring for each network; at least 24 runs are made.
        conditions: fields of :class:`~dwsep_zoo.analysis.runtimes.Workload`.

    Raises:
        UserError: for conditions that cannot be measured here.
    """
    timings = time_models(models, input_size, Workload(**conditions), min_run_time=min_run_time)
    return {name: timing.latency for name, timing in timings.items()}


def compare_latency(
    a: nn.Module,
    b: nn.Module,
    input_size: Sequence[int] | None = None,
    *,
    min_run_time: float = COMPARE_S,
    **conditions: Any,
) -> LatencyComparison:
    """Compare two networks; arguments as in :func:`measure_latencies`.

    A verdict takes longer than a single figure: three seconds each by default, and 144 runs.
    """
    models, workload = {"a": a, "b": b}, Workload(**conditions)
    timings = time_models(
        models, input_size, workload, min_run_time=min_run_time, least_turns=COMPARE_TURNS
    )
    return compare_turns(timings["a"].turns, timings["b"].turns)


def time_models(
    models: Mapping[str, nn.Module],
    input_size: Sequence[int] | None,
    workload: Workload,
    *,
    min_run_time: float = 1.0,
    least_turns: int = BATCHES,
    patience: float = 0.0,
) -> dict[str, Timing]:
    """Time copies of several networks in turns, each warmed up before.

    Args:
        models: by name.
        input_size: ``(C, H, W)``; ``None``: the networks' own.
        workload: the conditions.
        min_run_time: seconds for each network.
        least_turns: :data:`COMPARE_TURNS` for :func:`compare_turns`.
        patience: seconds for further attempts on a busy machine, until all times are steady; else
            the attempt with the most steady networks counts.

    Raises:
        UserError: for a workload that cannot be measured here.
    """
    workload.check()
    if not min_run_time > 0:
        raise UserError(f"min_run_time must be greater than 0; got {min_run_time!r}")
    device, threads = torch.device(workload.device), workload.threads or torch.get_num_threads()
    workload = replace(workload, threads=threads)
    shape = common_shape(models.values(), input_size)
    conditions = {**vars(workload), "device": device.type, "device_name": device_name(device)}
    if RUNTIMES[workload.runtime].own_format:
        conditions["memory_format"] = OWN_FORMAT
    with torch_threads(threads):
        runs = [prepare(model, shape, workload) for model in models.values()]
        with torch.inference_mode():
            found = time_runs(runs, conditions, min_run_time, least_turns, patience)
    return dict(zip(models, found, strict=True))


def time_runs(
    runs: Sequence[Inference],
    conditions: Mapping[str, Any],
    min_run_time: float = 1.0,
    least_turns: int = BATCHES,
    patience: float = 0.0,
) -> list[Timing]:
    """Time calls that compute a batch each; arguments as of :func:`time_models`.

    Args:
        runs: the calls.
        conditions: fields of :class:`Latency` that describe them.
        min_run_time: seconds for each.
        least_turns: of them.
        patience: seconds for further attempts.
    """
    timer, begin = timer_for(torch.device(conditions["device"])), time.perf_counter()
    best: list[Timing] = []
    while True:
        turns = take_turns(runs, timer, min_run_time, least_turns)
        found = [_timing(own, conditions) for own in turns]
        if not best or _steady(found) > _steady(best):
            best = found
        took = time.perf_counter() - begin
        if _steady(best) == len(runs) or took + PAUSE_S > patience:
            return best
        time.sleep(PAUSE_S)


def _steady(timings: Sequence[Timing]) -> int:
    return sum(timing.latency.stable for timing in timings)


def _timing(turns: Sequence[Sequence[float]], conditions: Mapping[str, Any]) -> Timing:
    """Percentiles of the seconds of each turn."""
    milliseconds = tuple(tuple(1e3 * seconds for seconds in turn) for turn in turns)
    times = np.concatenate(milliseconds)
    p10, p50, p90 = np.quantile(times, [0.1, 0.5, 0.9]).tolist()
    latency = Latency(
        p50_ms=p50,
        p10_ms=p10,
        p90_ms=p90,
        runs=len(times),
        stable=is_stable(milliseconds),
        **conditions,
    )
    return Timing(latency, milliseconds)


def take_turns(
    runs: Sequence[Inference], timer: Timer, min_run_time: float, least_turns: int = BATCHES
) -> list[list[list[float]]]:
    """Warm up, then time in turns.

    Args:
        runs: the calls to time.
        timer: times one call.
        min_run_time: seconds for each of ``runs``.
        least_turns: number of turns, if that takes longer.

    Returns:
        For each run and turn the seconds of its calls: an even number, half of them timed on the
        way forward through ``runs`` and half on the way back.
    """
    typical = [_warm_up(run, timer) for run in runs]
    block_s = min(BLOCK_S, min_run_time / least_turns / 2)
    calls = [max(1, round(block_s / seconds)) for seconds in typical]
    # Alone, a network finds the caches as it left them.
    lead_in = [len(runs) > 1 and seconds < LEAD_IN_S for seconds in typical]
    turns: list[list[list[float]]] = [[] for _ in runs]
    spent = 0.0
    while len(turns[0]) < least_turns or spent < min_run_time * len(runs):
        for turn in turns:
            turn.append([])
        forward = list(range(len(runs)))
        for i in forward + forward[::-1]:
            if lead_in[i]:
                timer(runs[i])
            times = [timer(runs[i]) for _ in range(calls[i])]
            turns[i][-1] += times
            spent += sum(times)
    return turns


def _warm_up(run: Inference, timer: Timer) -> float:
    """Run until two successive blocks take the same time, and return that of one run."""
    timer(run)  # the first run allocates, and may choose kernels
    previous, spent = math.inf, 0.0
    while True:
        block: list[float] = []
        while sum(block) < BLOCK_S:
            block.append(timer(run))
        spent += sum(block)
        current = float(np.median(block))
        settled = abs(current / previous - 1) < WARM and spent >= WARM_S
        if settled or spent >= WARM_MAX_S:
            return current
        previous = current


def is_stable(turns: Sequence[Sequence[float]]) -> bool:
    """Whether the times are steady by the rule of :class:`Latency`.

    Args:
        turns: times of each turn, in any unit.
    """
    first, second = np.array_split([np.median(turn) for turn in turns], [len(turns) // 2])
    drift = np.median(second) / np.median(first) - 1
    p10, p50, p90 = np.quantile(np.concatenate(turns), [0.1, 0.5, 0.9])
    return bool(abs(drift) < DRIFT and p90 - p10 < SPREAD * p50)


def compare_turns(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> LatencyComparison:
    """Compare times that were measured in turns.

    The ratio of a turn is that of its medians. Neighbouring turns share transient machine load, so
    they are put together into 12 batches. The median of the batches' medians is the ratio, and
    their range is the interval: the range of 12 independent values encloses their median in all
    but 0.05 % of cases, whatever the distribution.

    Batches are less than independent where turns are correlated. With fewer than
    :data:`COMPARE_TURNS` turns, or a rank correlation of neighbouring ones above
    :data:`CORRELATED`, there is no interval. Otherwise it holds the truth in 99 % of cases or more
    (``benchmarks/latency_coverage.py``).

    Args:
        a: times of each turn, in any unit.
        b: times of the other network in the same turns.
    """
    logs = [float(np.log(np.median(y) / np.median(x))) for x, y in zip(a, b, strict=True)]
    batches = [np.median(batch) for batch in np.array_split(logs, BATCHES)]
    ratio, low, high = np.exp([np.median(batches), min(batches), max(batches)]).tolist()
    if len(logs) < COMPARE_TURNS or autocorrelation(logs) > CORRELATED:
        return LatencyComparison(ratio, None, None, "unclear")
    verdict = "no difference"
    if low > 1 and ratio > 1 + INDIFFERENCE:
        verdict = "slower"
    elif high < 1 and ratio < 1 / (1 + INDIFFERENCE):
        verdict = "faster"
    return LatencyComparison(ratio, low, high, verdict)


def autocorrelation(values: Sequence[float]) -> float:
    """Rank correlation of each value with the next, its bias for short series taken off.

    The bias of the estimate is that of a first-order autoregression, -(1 + 3 r) / n (Kendall 1954,
    doi:10.1093/biomet/41.3-4.403).
    """
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float)
    ranks = order - order.mean()
    if np.ptp(values) == 0:
        return 0.0
    found = float((ranks[1:] * ranks[:-1]).sum() / (ranks**2).sum())
    return found + (1 + 3 * max(found, 0.0)) / len(ranks)


def timer_for(device: torch.device) -> Timer:
    """The timer for inferences on a device."""
    clock = device_clock(device)
    return lambda run: clock.time(run) / 1e3
