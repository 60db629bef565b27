"""Equal budgets: the width at which one variant costs what another one does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dwsep_zoo.analysis.count import count
from dwsep_zoo.analysis.latency import measure_latencies
from dwsep_zoo.errors import choose
from dwsep_zoo.models import build_model
from dwsep_zoo.models.registry import LARGEST_MULT
from dwsep_zoo.schema.record import Match

QUANTITIES = ("params", "macs", "latency")
TOLERANCE = 0.02  # of the target; a larger residual is worth a warning
WIDEST = 64.0  # factor on the given width
LATENCY_STEPS = 8  # halvings of the bracket: each is a measurement
TRY_S, CONFIRM_S = 0.2, 1.0  # seconds of measuring: of a width on trial, and of the chosen one


def match_width(
    quantity: str,
    to: str | Mapping[str, Any],
    input_size: Sequence[int],
    *,
    width_mult: float = 1.0,
    **network: Any,
) -> Match:
    """Find the width at which a network costs what the same network with another conv type does.

    Channels are multiples of 8, so the cost is the nearest that there is; widths end at 32.

    Args:
        quantity: ``params``, ``macs`` or ``latency`` (eager, one image, both networks in turns; the
            width that was found is measured once more).
        to: conv type of the network that sets the budget.
        input_size: ``(C, H, W)`` of an image.
        width_mult: width of that network.
        network: the other arguments of :func:`dwsep_zoo.create_model`.

    Raises:
        UserError: for an unknown quantity.
    """
    choose(quantity, QUANTITIES, "match")
    name = to if isinstance(to, str) else str(to["name"])
    reference = {**network, "conv": to, "width_mult": width_mult}
    if quantity == "latency":
        target, width, achieved = _equal_latency(reference, network, input_size)
    else:

        def counted(width: float, network: Mapping[str, Any] = network) -> float:
            with torch.device("meta"):
                # Stochastic depth costs nothing, but its module comes from timm, slow to import.
                free = {"width_mult": width, "drop_path_rate": 0.0}
                model = build_model(**{**network, **free})
            return float(getattr(count(model, input_size), quantity))

        target = counted(width_mult, reference)
        width, achieved = nearest_width(counted, target, width_mult)
    return Match.of(quantity, name, target=target, achieved=achieved, width_mult=width)


def _equal_latency(
    reference: Mapping[str, Any], network: Mapping[str, Any], input_size: Sequence[int]
) -> tuple[float, float, float]:
    """Milliseconds of the reference, and the width and milliseconds of the network."""
    target = build_model(**reference)

    def timed(width: float, seconds: float) -> tuple[float, float]:
        """Milliseconds of the reference and of the network, measured in turns."""
        models = {"target": target, "own": build_model(**{**network, "width_mult": width})}
        times = measure_latencies(models, input_size, min_run_time=seconds)
        return times["target"].p50_ms, times["own"].p50_ms

    def ratio(width: float) -> float:
        target_ms, own_ms = timed(width, TRY_S)
        return own_ms / target_ms

    width, _ = nearest_width(ratio, 1.0, reference["width_mult"], steps=LATENCY_STEPS)
    # The nearest of many noisy measurements is near by chance too, so another one is recorded.
    target_ms, own_ms = timed(width, CONFIRM_S)
    return target_ms, width, own_ms


def nearest_width(
    cost: Callable[[float], float], target: float, start: float, *, steps: int = 30
) -> tuple[float, float]:
    """Find the width whose cost is nearest to ``target``, and that cost.

    Args:
        cost: maps a width to its cost: a staircase that rises, as channels are whole numbers.
        target: the cost to come near to.
        start: the first width to try.
        steps: halvings of the bracket.
    """
    tried: dict[float, float] = {}

    def at(width: float) -> float:
        if width not in tried:
            tried[width] = cost(width)
        return tried[width]

    low = high = start
    while at(low) > target and low > start / WIDEST and at(low / 2) < at(low):
        low /= 2
    while at(high) < target and high < start * WIDEST and 2 * high <= LARGEST_MULT:
        high *= 2
    for _ in range(steps):
        if at(low) >= target or at(high) <= target or at(low) == at(high) or high / low < 1.0002:
            break
        middle = _short(math.sqrt(low * high), low, high)
        if at(middle) < target:
            low = middle
        else:
            high = middle
    # Of equal costs the width nearest to the start: 1 rather than 0.98 for the same channels.
    best = min(tried, key=lambda w: (abs(tried[w] / target - 1), abs(math.log(w / start))))
    return best, tried[best]


def _short(width: float, low: float, high: float) -> float:
    """``width`` with as few digits as still lie strictly between the ends."""
    for digits in range(2, 8):
        rounded = float(f"{width:.{digits}g}")
        if low < rounded < high:
            return rounded
    return width
