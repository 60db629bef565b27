"""The time of a network's units, without the cost of measuring it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dwsep_zoo.analysis.device import Clock
from dwsep_zoo.analysis.units import Unit, watched
from dwsep_zoo.schema.roofline import NORM_ACT

HOOKED, REPEATS = 50, 40  # modules and passes that measure the cost of hooks


@dataclass(frozen=True)
class HookCost:
    """Milliseconds that the hooks of one unit add, to its own time and between it and the next."""

    inside_ms: float = 0.0
    outside_ms: float = 0.0


@dataclass(frozen=True)
class Pass:
    """Milliseconds of a forward pass without hooks, and of one with them.

    Attributes:
        units_ms: each unit, less the cost of its hooks.
        rest_ms: between the units.
    """

    plain_ms: float
    hooked_ms: float
    units_ms: tuple[float, ...]
    rest_ms: float


def time_units(
    model: nn.Module, parts: Sequence[Unit], x: Tensor, clock: Clock, cost: HookCost
) -> Pass:
    """Time a forward pass without hooks and one with them; units in the order of execution."""
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

    plain_ms = clock.time(lambda: model(x))
    with watched(parts, start, stop):
        hooked_ms = clock.time(lambda: model(x))
    raw = [clock.ms(*span) for span in spans]
    return Pass(
        plain_ms=plain_ms,
        hooked_ms=hooked_ms,
        units_ms=tuple(max(0.0, ms - cost.inside_ms) for ms in raw),
        rest_ms=max(0.0, hooked_ms - sum(raw) - len(raw) * cost.outside_ms),
    )


def hook_cost(device: torch.device, clock: Clock) -> HookCost:
    """Measured on modules that do nothing."""
    model = nn.Sequential(*(nn.Identity() for _ in range(HOOKED)))
    parts = [Unit("", NORM_ACT, module) for module in model]
    x = torch.zeros(1, device=device)
    passes = [time_units(model, parts, x, clock, HookCost()) for _ in range(REPEATS)]
    inside_ms = statistics.median(statistics.median(p.units_ms) for p in passes)
    added_ms = statistics.median(p.hooked_ms - p.plain_ms for p in passes) / HOOKED
    return HookCost(inside_ms, max(0.0, added_ms - inside_ms))
