"""The measured ceilings of a device: arithmetic, memory, and the calls of operators."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dwsep_zoo.analysis.device import Clock
from dwsep_zoo.analysis.stopwatch import HookCost, time_units
from dwsep_zoo.analysis.units import Work, operator, units

TRAFFIC = tuple(2**power for power in range(18, 30, 2))  # bytes: from a cache's size to memory's
LEAST_GEMM, LARGEST_GEMM = 512, 8192  # rows and columns
LONG_GEMM_MS = 20.0  # a larger one would not be faster
BUDGET_MS, LEAST_RUNS = 20.0, 5  # of each measurement
TINY_CHANS, TINY_REPEATS = 8, 20


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per nanosecond where ``traffic`` bytes are read and written again and again."""

    traffic: int
    gb_s: float


@dataclass(frozen=True)
class Peaks:
    """The ceilings of one device, at one precision and number of threads.

    They are the best of many runs, not medians: the speed of an undisturbed device.

    Attributes:
        gflop_s: rate of the fastest large matrix product or 1 x 1 convolution (1 MAC = 2 FLOPs).
        bandwidths: by traffic, ascending; the fastest of copying, scaling in place and summing.
        call_ms: on one pixel, the fixed cost of calling an operator, by the name that
            :func:`~dwsep_zoo.analysis.units.operator` gives it.
    """

    gflop_s: float
    bandwidths: tuple[Bandwidth, ...]
    call_ms: Mapping[str, float]

    def bandwidth(self, traffic: float) -> float:
        """GB/s for so many bytes: on a line between the measured ones, in the traffic's logarithm.

        It never rises with the traffic, as small ones are measured with the cost of a call in them.
        """
        logs = np.log([b.traffic for b in self.bandwidths])
        falling = np.maximum.accumulate([b.gb_s for b in self.bandwidths][::-1])[::-1]
        return float(np.interp(math.log(max(traffic, 1)), logs, falling))

    def limits(self, work: Work, batch_size: int, itemsize: int) -> dict[str, float]:
        """The least milliseconds that arithmetic, memory and the calls alone would take."""
        traffic = traffic_of(work, batch_size, itemsize)
        return {
            "compute": 2 * work.macs * batch_size / self.gflop_s / 1e6,
            "memory": traffic / self.bandwidth(traffic) / 1e6,
            "overhead": sum(self.call_ms[name] for name in work.calls),
        }


def traffic_of(work: Work, batch_size: int, itemsize: int) -> int:
    """Bytes that a unit has to move for a batch: its input, output and weights, each once."""
    return (work.activations * batch_size + work.weights) * itemsize


def measure_peaks(device: torch.device, dtype: torch.dtype, clock: Clock, cost: HookCost) -> Peaks:
    """Measure for a second or two; ``cost`` is that of the hooks."""
    return Peaks(
        gflop_s=_gflop_s(device, dtype, clock),
        bandwidths=tuple(Bandwidth(t, _gb_s(t, device, clock)) for t in TRAFFIC),
        call_ms=_call_ms(device, dtype, clock, cost),
    )


def _gflop_s(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    best, size = 0.0, LEAST_GEMM
    while True:
        a = torch.randn(size, size, device=device).to(dtype)
        # The same product as a convolution, which has a library and settings (TF32) of its own.
        image = a.t().reshape(1, size, size, 1).to(memory_format=torch.channels_last)
        ways = (partial(torch.mm, a, a), partial(F.conv2d, image, a[:, :, None, None]))
        times = [_least_ms(way, clock) for way in ways]
        best = max(best, 2 * size**3 / min(times) / 1e6)
        if min(times) > LONG_GEMM_MS or size == LARGEST_GEMM:
            return best
        size *= 2


def _gb_s(traffic: int, device: torch.device, clock: Clock) -> float:
    source = torch.zeros(traffic // 4, device=device)  # float32
    half = source[: len(source) // 2]
    target = torch.zeros_like(half)
    ways: tuple[Callable[[], Any], ...] = (
        lambda: target.copy_(half),
        lambda: half.mul_(0.5),
        source.sum,
    )
    return max(traffic / _least_ms(way, clock) / 1e6 for way in ways)


def _call_ms(
    device: torch.device, dtype: torch.dtype, clock: Clock, cost: HookCost
) -> dict[str, float]:
    """The time of each kind of operator on one pixel, measured like the units of a network."""
    chans = TINY_CHANS
    model = nn.Sequential()
    for _ in range(TINY_REPEATS):
        model.extend(
            (
                nn.Conv2d(chans, chans, 3, padding=1, bias=False),
                nn.Conv2d(chans, chans, 1, bias=False),
                # Groups are another library's on a CPU, which takes longer to call.
                nn.Conv2d(chans, chans, 3, padding=1, groups=chans // 2, bias=False),
                nn.Conv2d(chans, chans, 3, padding=1, groups=chans, bias=False),
                nn.BatchNorm2d(chans),
                nn.ReLU(inplace=True),  # the least that another operator can do
            )
        )
    model.append(nn.Flatten())
    model.extend(nn.Linear(chans, chans) for _ in range(TINY_REPEATS))
    model.eval().to(device, dtype)
    parts = list(units(model))
    x = torch.zeros(1, chans, 1, 1, device=device, dtype=dtype)
    x = x.to(memory_format=torch.channels_last)
    passes = [time_units(model, parts, x, clock, cost).units_ms for _ in range(TINY_REPEATS)]
    least: dict[str, list[float]] = {}
    for unit, times in zip(parts, zip(*passes, strict=True), strict=True):
        least.setdefault(operator(unit.module), []).append(min(times))
    return {name: statistics.median(times) for name, times in least.items()}


def _least_ms(run: Callable[[], Any], clock: Clock) -> float:
    times: list[float] = []
    run()
    while len(times) < LEAST_RUNS or (sum(times) < BUDGET_MS and len(times) < 1000):
        times.append(clock.time(run))
    return min(times)
