"""The measured ceilings of a device: arithmetic, memory, and the calls of operators."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dwsep_zoo.analysis.device import Clock
from dwsep_zoo.analysis.stopwatch import HookCost, time_units
from dwsep_zoo.analysis.units import operator, units
from dwsep_zoo.schema.roofline import Bandwidth, Peaks

TRAFFIC = tuple(2**power for power in range(18, 30, 2))  # bytes: from a cache's size to memory's
LEAST_PRODUCT = 512  # rows and columns
LEAST_IMAGES, CONV_CHANS, CONV_SIDE = 4, 256, 16
LARGEST_SIZE = 16  # times the least
LONG_CALL_MS = 20.0  # a larger one would not be faster
BUDGET_MS, LEAST_RUNS = 20.0, 5  # of each measurement
TINY_CHANS, TINY_REPEATS = 8, 20


def measure_peaks(device: torch.device, dtype: torch.dtype, clock: Clock, cost: HookCost) -> Peaks:
    """Measure for a second or two; ``cost`` is that of the hooks."""
    return Peaks(
        gflop_s=_gflop_s(device, dtype, clock),
        bandwidths=tuple(Bandwidth(t, _gb_s(t, device, clock)) for t in TRAFFIC),
        call_ms=_call_ms(device, dtype, clock, cost),
    )


def _gflop_s(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """The best of products of growing matrices, and of convolutions of growing batches.

    Libraries have kernels of their own for both, and choose them by size: on a CPU with one thread,
    a 1 x 1 convolution of 16 images can be twice as fast as one of 8, and a 3 x 3 one faster still.
    """
    return max(
        _best_rate(partial(_product, device, dtype), clock),
        *(_best_rate(partial(_conv, device, dtype, kernel), clock) for kernel in (1, 3)),
    )


def _best_rate(make: Callable[[int], tuple[Callable[[], Any], int]], clock: Clock) -> float:
    """GFLOP/s of what ``make`` returns, a call and its FLOPs, for size 1, 2, 4 ..."""
    best, size = 0.0, 1
    while True:
        call, flops = make(size)
        least = _least_ms(call, clock)
        best = max(best, flops / least / 1e6)
        if least > LONG_CALL_MS or size == LARGEST_SIZE:
            return best
        size *= 2


def _product(device: torch.device, dtype: torch.dtype, size: int) -> tuple[Callable[[], Any], int]:
    side = LEAST_PRODUCT * size
    a = torch.randn(side, side, device=device).to(dtype)
    return partial(torch.mm, a, a), 2 * side**3


def _conv(
    device: torch.device, dtype: torch.dtype, kernel: int, size: int
) -> tuple[Callable[[], Any], int]:
    """Without padding, which would be taps that cost nothing."""
    images = LEAST_IMAGES * size
    x = torch.randn(images, CONV_CHANS, CONV_SIDE, CONV_SIDE, device=device).to(dtype)
    weight = torch.randn(CONV_CHANS, CONV_CHANS, kernel, kernel, device=device).to(dtype)
    x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    outputs = images * (CONV_SIDE - kernel + 1) ** 2
    return partial(F.conv2d, x, weight), 2 * weight.numel() * outputs


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
