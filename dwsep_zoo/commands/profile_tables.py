"""The tables of ``dwsep profile``: costs, latencies, and the roofline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from torch import nn

from dwsep_zoo.analysis.bottleneck import conditions, percent
from dwsep_zoo.analysis.cost import Cost
from dwsep_zoo.analysis.count import count
from dwsep_zoo.analysis.latency import Latency, Timing, compare_turns
from dwsep_zoo.analysis.memory import inference_memory, state_dict_bytes, training_memory
from dwsep_zoo.commands.arguments import UNIT
from dwsep_zoo.commands.profile import Variants
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.roofline import KINDS, REST, KindTime, LayerTime, NetworkTime, Roofline
from dwsep_zoo.terminal import by, table

SLOWEST = 5  # layers of each network in the tables
COMPACT: Mapping[str, Any] = {
    "box": SIMPLE_HEAD,
    "padding": (0, 1, 0, 0),
    "pad_edge": False,
}


def cost_table(plan: Variants) -> Table:
    """Parameters, multiply-adds, size and memory of the variants, and their ratios."""
    costs = {name: _costs(network, plan) for name, network in plan.networks.items()}

    def cell(quantity: str, name: str) -> str:
        value, of = costs[name][quantity], costs[plan.reference][quantity]
        if value is None or of is None:
            return "cannot be trained"
        text = f"{value:,}" if quantity == "parameters" else f"{value / 1e6:,.1f}"
        return text if name == plan.reference else f"{text} ({value / of:.2f}x)"

    return table(
        f"{plan.name}, one image of {by(plan.input_size)}",
        ("", *costs),
        ((q, *(cell(q, name) for name in costs)) for q in costs[plan.reference]),
        caption=f"{UNIT}; in brackets the ratio to {plan.reference}. Memory: the largest size "
        "of all tensors alive at once, in fp32, weights included; training: one forward and "
        "backward pass, without the optimizer's state",
        caption_justify="left",
    )


def _costs(network: nn.Module, plan: Variants) -> dict[str, int | None]:
    counted = count(network, plan.input_size)
    costs: dict[str, int | None] = {
        "parameters": counted.params,
        "MACs (M)": counted.macs,
        "weights on disk (MB)": state_dict_bytes(network),
    }
    for what, peak in (("inference", inference_memory), ("training", training_memory)):
        for batch in plan.batch_sizes:
            heading = f"memory, {what}, batch {batch} (MB)"
            try:
                costs[heading] = peak(network, plan.input_size, batch_size=batch)
            except UserError:
                costs[heading] = None
    return costs


def latency_table(plan: Variants, costs: Sequence[Cost]) -> Table:
    """The latency of each variant for each workload."""

    def rows() -> Iterator[Sequence[str] | None]:
        for index, workload in enumerate(plan.workloads):
            timings = {n: c.timings[index] for n, c in zip(plan.networks, costs, strict=True)}
            yield (f"[bold]{workload}",)
            for name, timing in timings.items():
                yield f"  {name}", *_latency(timing, timings[plan.reference])
            yield None

    return table(
        f"latency of {plan.name} at {by(plan.input_size)}, milliseconds",
        ("", "p50", r"\[p10, p90]", r"ratio \[99 %]", "verdict"),
        rows(),
        words=("", r"ratio \[99 %]", "verdict"),
        caption=_legend([timing.latency for cost in costs for timing in cost.timings], plan),
        caption_justify="left",
    )


def _latency(timing: Timing, reference: Timing) -> Sequence[str]:
    x = timing.latency
    p50, ends = f"{'' if x.stable else '* '}{x.p50_ms:.2f}", f"{x.p10_ms:.2f}, {x.p90_ms:.2f}"
    if timing is reference:
        return p50, rf"\[{ends}]", "", "reference"
    c = compare_turns(reference.turns, timing.turns)
    return p50, rf"\[{ends}]", escape(c.text()), c.verdict


def _legend(latencies: Sequence[Latency], plan: Variants) -> str:
    layouts = dict.fromkeys(f"{x.runtime} {x.memory_format}" for x in latencies)
    threads = latencies[0].threads
    lines = [
        f"{latencies[0].device_name}, {threads} thread{'' if threads == 1 else 's'}; "
        + ", ".join(layouts),
        "times of a whole batch on random input, each network in its turn; median of "
        f"{min(x.runs for x in latencies):,} runs or more",
        f"ratio: to {plan.reference}; no difference: its 99 % interval includes 1, or it is "
        "within 3 % of 1; unclear: the machine's speed changed too slowly for an interval",
    ]
    if not all(x.stable for x in latencies):
        lines.append(
            "* unstable: the median moved by 5 % or p10 and p90 lie 30 % apart; measure again on "
            "a quiet machine"
        )
    return "\n".join([*lines, *map(escape, plan.notes)])


def roofline_tables(roofline: Roofline) -> Iterator[Table]:
    """For a terminal of 100 columns: time by kind of unit, two networks a table; slowest layers."""
    for i in range(0, len(roofline.networks), 2):
        yield _kinds_table(roofline.networks[i : i + 2], roofline)
    for network in roofline.networks:
        yield table(
            f"{network.name}: slowest layers",
            ("layer", "unit", "MACs M", "MB", "FLOP/B", "ms", "share", "bound", "peak"),
            (
                (
                    layer.name,
                    layer.kind,
                    _macs(layer),
                    f"{layer.bytes / 1e6:.2f}",
                    f"{layer.intensity:.1f}" if layer.macs else "",
                    *_time(layer, network),
                )
                for layer in sorted(network.layers, key=lambda x: -x.time_ms)[:SLOWEST]
            ),
            words=("layer", "unit", "bound"),
            **COMPACT,
        )


def _kinds_table(networks: Sequence[NetworkTime], roofline: Roofline) -> Table:
    kinds = [kind for kind in KINDS if any(unit.kind == kind for n in networks for unit in n.units)]
    peaks = roofline.peaks
    small, large = peaks.bandwidths[0].traffic, peaks.bandwidths[-1].traffic
    calls = ", ".join(f"{name} {1e3 * ms:.0f}" for name, ms in peaks.call_ms.items())
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.title = "Time by kind of unit"
    grid.caption = (
        f"median of {roofline.runs} runs on {conditions(roofline)}; 1 MAC = 2 FLOPs; MACs of one "
        f"image, ms for the batch; bound: what takes longest at this device's ceilings, measured "
        f"{peaks.gflop_s:.0f} GFLOP/s, {peaks.bandwidth(large):.0f} (memory) to "
        f"{peaks.bandwidth(small):.0f} GB/s (cache), us to call an operator: {calls}; peak: the "
        "time at the arithmetic or memory ceiling over the time measured; sum: of the units, "
        "without what the hooks that time them cost"
    )
    names = [*((kind,) for kind in kinds), None, ("sum",), ("without hooks",)]
    grid.add_row(
        table(" ", ("unit",), names, words=("unit",), **COMPACT),
        *(_kinds_of(network, kinds) for network in networks),
    )
    return grid


def _kinds_of(network: NetworkTime, kinds: Sequence[str]) -> Table:
    units = {unit.kind: unit for unit in network.units}
    return table(
        network.name,
        ("MACs M", "ms", "share", "bound", "peak"),
        [
            *(
                (_macs(units[kind]), *_time(units[kind], network)) if kind in units else "-----"
                for kind in kinds
            ),
            None,
            (f"{network.macs / 1e6:.1f}", _ms(network.sum_ms), "100 %", "", ""),
            ("", _ms(network.total_ms), "", "", ""),
        ],
        words=("bound",),
        **COMPACT,
    )


def _macs(part: LayerTime | KindTime) -> str:
    return f"{part.macs / 1e6:.1f}" if part.macs else ""


def _time(part: LayerTime | KindTime, network: NetworkTime) -> Sequence[str]:
    """Milliseconds, share, bound, and fraction of the ceiling; the rest has none."""
    peak = "" if part.kind == REST else percent(part.attained)
    return _ms(part.time_ms), percent(part.time_ms / network.sum_ms), part.bound, peak


def _ms(time_ms: float) -> str:
    return f"{time_ms:.{3 if time_ms < 10 else 2 if time_ms < 100 else 1}f}"
