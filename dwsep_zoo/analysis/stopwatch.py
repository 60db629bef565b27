"""The time of a network's units, without the cost of measuring it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dwsep_zoo.analysis.units import NORM_ACT, Unit, attach

HOOKED, REPEATS = 50, 40  # modules and passes that measure the cost of hooks


@dataclass(frozen=True)
class Clock:
    """Marks of time, and the milliseconds between two of them, known after ``wait``."""

    now: Callable[[], Any]
    ms: Callable[[Any, Any], float]
    wait: Callable[[], None]


def device_clock(device: torch.device) -> Clock:
    """The processor's clock, or events in the accelerator's own stream."""
    if device.type == "cuda":
        return Clock(_event, _event_ms, torch.cuda.synchronize)
    return Clock(time.perf_counter_ns, lambda start, end: (end - start) / 1e6, lambda: None)


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _event_ms(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    return start.elapsed_time(end)


@dataclass(frozen=True)
class HookCost:
    """Milliseconds that the hooks of one unit add, to its own time and between it and the next."""

    inside_ms: float
    outside_ms: float


@dataclass(frozen=True)
class Pass:
    """Milliseconds of one forward pass with hooks: total, each unit, and the rest between them."""

    total_ms: float
    units_ms: tuple[float, ...]
    rest_ms: float


def time_plain(model: nn.Module, x: Tensor, clock: Clock) -> float:
    """Milliseconds of one forward pass without hooks."""
    clock.wait()
    start = clock.now()
    model(x)
    end = clock.now()
    clock.wait()
    return clock.ms(start, end)


def time_units(
    model: nn.Module, parts: Sequence[Unit], x: Tensor, clock: Clock, cost: HookCost
) -> Pass:
    """Time one forward pass with hooks, less their cost; units in the order of execution."""
    begin: Any = None
    spans: list[tuple[Any, Any]] = []

    def start(unit: Unit) -> None:
        nonlocal begin
        begin = clock.now()

    def stop(unit: Unit, inputs: Any, out: Any) -> None:
        nonlocal begin
        end = clock.now()
        spans.append((begin, end))
        begin = end  # the start of a shortcut, which has no hook of its own

    handles = attach(parts, start, stop)
    try:
        clock.wait()
        first = clock.now()
        model(x)
        last = clock.now()
        clock.wait()
    finally:
        for handle in handles:
            handle.remove()
    raw = [clock.ms(*span) for span in spans]
    total = clock.ms(first, last)
    return Pass(
        total_ms=total,
        units_ms=tuple(max(0.0, ms - cost.inside_ms) for ms in raw),
        rest_ms=max(0.0, total - sum(raw) - len(raw) * cost.outside_ms),
    )


def hook_cost(device: torch.device, clock: Clock) -> HookCost:
    """Measured on modules that do nothing."""
    model = nn.Sequential(*(nn.Identity() for _ in range(HOOKED)))
    parts = [Unit("", NORM_ACT, module) for module in model]
    x = torch.zeros(1, device=device)
    inside, added = [], []
    for _ in range(REPEATS):
        plain = time_plain(model, x, clock)
        hooked = time_units(model, parts, x, clock, HookCost(0.0, 0.0))
        inside.append(statistics.median(hooked.units_ms))
        added.append((hooked.total_ms - plain) / HOOKED)
    inside_ms = statistics.median(inside)
    return HookCost(inside_ms, max(0.0, statistics.median(added) - inside_ms))
