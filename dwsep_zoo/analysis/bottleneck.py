"""The bottleneck of a network in a sentence, for reports and ``dwsep profile``."""

from __future__ import annotations

from collections.abc import Sequence

from dwsep_zoo.schema.roofline import (
    NORM_ACT,
    POOLING,
    REST,
    SHORTCUT,
    LayerTime,
    NetworkTime,
    Roofline,
    attained,
)

BOUNDS = {"memory": "bandwidth-bound", "compute": "compute-bound", "overhead": "call-bound"}
ELEMENTWISE = dict.fromkeys((NORM_ACT, SHORTCUT, POOLING), "elementwise")
CLOSES = 0.1  # of the time without hooks: how far the sum of the units may be from it
SAME_MACS, SAME_TIME, MOST_OF = 0.01, 0.05, 0.8  # fractions


def conditions(roofline: Roofline) -> str:
    """The conditions of the measurement in a line."""
    r = roofline
    threads = f" {r.threads} thread{'' if r.threads == 1 else 's'}" if r.device == "cpu" else ""
    size = "x".join(map(str, r.input_size))
    return (
        f"{r.device} ({r.device_name}){threads}, {r.runtime}, {r.precision}, {r.memory_format}, "
        f"batch {r.batch_size}, input {size}"
    )


def sentence(roofline: Roofline, reference: str, other: str, speed: float | None = None) -> str:
    """Compare the cost of two networks and name the bottleneck of ``other``.

    Args:
        roofline: holds both networks.
        reference: name of the network that ``other`` is compared with.
        other: name of the network that is explained.
        speed: factor by a latency measurement; ``None``: by the passes without hooks.

    Raises:
        UserError: if one of them was not measured.
    """
    a, b = roofline.network(reference), roofline.network(other)
    macs, speed = a.macs / b.macs, speed or a.total_ms / b.total_ms
    yet = "yet " if macs > 1 + SAME_MACS and speed < 1 + SAME_TIME else ""
    compared = _compared(macs, SAME_MACS, "fewer MACs", "more MACs", "as many MACs")
    timed = _compared(speed, SAME_TIME, "faster", "slower", "about as fast")
    return f"{compared}, {yet}{timed}: {_explained(b)}"


def _compared(ratio: float, tolerance: float, above: str, below: str, same: str) -> str:
    factor = max(ratio, 1 / ratio)
    if factor <= 1 + tolerance:
        return same
    return f"{factor:.{1 if factor >= 1.1 else 2}f}x {above if ratio > 1 else below}"


def _explained(network: NetworkTime) -> str:
    """The bound that takes the most time, with the kinds of layers that cause it."""
    if _is_gap(network):
        return f"the time of {network.name} is not explained: {_gap(network)}"
    rest = sum(unit.time_ms for unit in network.units if unit.kind == REST)
    times = {bound: [la for la in network.layers if la.bound == bound] for bound in BOUNDS}
    totals = {bound: _time(layers) for bound, layers in times.items()}
    totals["overhead"] += rest
    bound = max(totals, key=totals.__getitem__)
    if bound == "overhead":
        share = percent(totals[bound] / network.sum_ms)
        return (
            f"{share} of the time of {network.name} is in operators whose call takes longer than "
            "their arithmetic or memory traffic would at full speed, and in Python between them"
        )
    by_word: dict[str, list[LayerTime]] = {}
    for layer in times[bound]:
        by_word.setdefault(ELEMENTWISE.get(layer.kind, layer.kind), []).append(layer)
    named: list[LayerTime] = []
    words: list[str] = []
    for word in sorted(by_word, key=lambda word: -_time(by_word[word])):
        if _time(named) < MOST_OF * totals[bound]:
            words.append(word)
            named += by_word[word]
    share, reached = percent(_time(named) / network.sum_ms), percent(attained(named))
    listed = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    rate = f"at {reached} of what this device can do"
    if attained(named) > 1:  # which cannot be
        rate = "as fast as this device was found to be"
    return f"{share} of the time of {network.name} is {BOUNDS[bound]} {listed} work, {rate}"


def _time(layers: Sequence[LayerTime]) -> float:
    return sum(layer.time_ms for layer in layers)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def gaps(roofline: Roofline) -> list[str]:
    """One warning for each network whose times cannot be right: a busy machine disturbed them."""
    found = [f"{n.name}: {_gap(n)}" for n in roofline.networks if _is_gap(n)]
    for network in roofline.networks:
        above = [layer for layer in network.layers if layer.attained > 1 + CLOSES]
        if above:
            found.append(
                f"{network.name}: {len(above)} layers are faster than the ceilings measured for "
                f"this device, {above[0].name} by {percent(above[0].attained - 1)}; measure again"
            )
    return found


def _is_gap(network: NetworkTime) -> bool:
    return abs(network.sum_ms / network.total_ms - 1) > CLOSES


def _gap(network: NetworkTime) -> str:
    return (
        f"its units add up to {percent(network.sum_ms / network.total_ms)} of its time; the "
        "machine may have been busy: measure again"
    )
