"""Variants of one network, the workloads that run here, and the tables of their costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from dwsep_zoo.analysis.cost import Cost
from dwsep_zoo.analysis.count import count
from dwsep_zoo.analysis.latency import LatencyComparison, Timing, compare_turns
from dwsep_zoo.analysis.memory import inference_memory, state_dict_bytes, training_memory
from dwsep_zoo.analysis.runtimes import DTYPES, RUNTIMES, Workload, available_runtimes
from dwsep_zoo.commands.network import UNIT, by, input_size
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.models import build_model
from dwsep_zoo.models.registry import check_room
from dwsep_zoo.nn import CONVS

if TYPE_CHECKING:
    from dwsep_zoo.commands.profile import ProfileArguments

DEFAULT_RUNTIMES = ("eager", "fused", "onnxruntime", "openvino")  # the others compile for minutes


@dataclass(frozen=True)
class Variants:
    """Networks to measure in turns; every workload can run here.

    Attributes:
        name: the model and its width.
        networks: by conv type.
        input_size: ``(C, H, W)``.
        notes: reasons why other workloads cannot be measured.
    """

    name: str
    networks: Mapping[str, nn.Module]
    input_size: tuple[int, int, int]
    batch_sizes: tuple[int, ...]
    workloads: tuple[Workload, ...]
    notes: tuple[str, ...]

    @property
    def reference(self) -> str:
        """The conv type that the others are compared with."""
        return "standard" if "standard" in self.networks else next(iter(self.networks))


def plan_variants(options: ProfileArguments) -> Variants:
    """Check the options and build the networks.

    Raises:
        UserError: for a network or workload that cannot be. Of several runtimes and precisions,
            pairs that do not exist are only noted.
    """
    convs = [choose(name, CONVS, "conv") for name in dict.fromkeys(options.conv)]
    batch_sizes = tuple(dict.fromkeys(options.batch_size))
    Workload(device=options.device).check()
    pairs, notes = _pairs(options)
    threads = options.threads or torch.get_num_threads()
    networks = {
        name: build_model(
            str(options.model),
            conv=name,
            width_mult=options.width_mult,
            output_stride=options.output_stride,
            num_classes=options.num_classes,
            in_chans=options.in_chans,
        ).eval()
        for name in convs
    }
    size = input_size(networks[convs[0]], options.size)
    for name, network in networks.items():
        needed = inference_memory(network, size, batch_size=max(batch_sizes))
        check_room(needed, f"conv={name}, batch {max(batch_sizes)}:")
    return Variants(
        name=f"{options.model}, width {options.width_mult:g}",
        networks=networks,
        input_size=size,
        batch_sizes=batch_sizes,
        workloads=tuple(
            Workload(runtime, precision, batch, options.device, threads)
            for runtime, precision in pairs
            for batch in batch_sizes
        ),
        notes=tuple(notes),
    )


def _pairs(options: ProfileArguments) -> tuple[list[tuple[str, str]], list[str]]:
    """The pairs of runtime and precision that can be measured, and notes on the others."""
    every = options.runtimes == ("all",)
    named = () if every or options.runtimes is None else tuple(dict.fromkeys(options.runtimes))
    names = named or (RUNTIMES if every else DEFAULT_RUNTIMES)
    precisions = tuple(dict.fromkeys(options.precision))
    for name in names:
        choose(name, RUNTIMES, "runtime")
    for precision in precisions:
        choose(precision, DTYPES, "precision")
    missing = available_runtimes()
    pairs: list[tuple[str, str]] = []
    notes = []
    for name in names:
        if missing[name] and not named:
            notes.append(f"{name} is absent; install it with: {missing[name]}")
            continue
        if missing[name]:
            Workload(name).check()  # says so
        for precision in precisions:
            try:
                Workload(name, precision, device=options.device).check()
            except UserError as error:
                if len(names) * len(precisions) == 1:
                    raise
                notes.append(f"not measured: {error}")
            else:
                pairs.append((name, precision))
    if not pairs:
        raise UserError("; ".join(notes))
    return pairs, notes


def cost_table(plan: Variants) -> Table:
    """Parameters, multiply-adds, size and memory of the variants, and their ratios."""
    table = Table(
        title=f"{plan.name}, one image of {by(plan.input_size)}",
        caption=f"{UNIT}; in brackets the ratio to {plan.reference}. Memory: the largest size "
        "of all tensors alive at once, in fp32, weights included; training: one forward and "
        "backward pass, without the optimizer's state",
        caption_justify="left",
    )
    table.add_column("")
    costs = {
        name: _costs(network, plan.input_size, plan.batch_sizes)
        for name, network in plan.networks.items()
    }
    for name in costs:
        table.add_column(name, justify="right", no_wrap=True)
    for quantity, of in costs[plan.reference].items():
        cells = []
        for name, values in costs.items():
            value = values[quantity]
            if value is None or of is None:
                cells.append("cannot be trained")
                continue
            cell = f"{value:,}" if quantity == "parameters" else f"{value / 1e6:,.1f}"
            ratio = "" if name == plan.reference else f" ({value / of:.2f}x)"
            cells.append(cell + ratio)
        table.add_row(quantity, *cells)
    return table


def _costs(
    network: nn.Module, input_size: tuple[int, int, int], batch_sizes: Sequence[int]
) -> dict[str, int | None]:
    counted = count(network, input_size)
    costs: dict[str, int | None] = {
        "parameters": counted.params,
        "MACs (M)": counted.macs,
        "weights on disk (MB)": state_dict_bytes(network),
    }
    for batch in batch_sizes:
        heading = f"memory, inference, batch {batch} (MB)"
        costs[heading] = inference_memory(network, input_size, batch_size=batch)
    for batch in batch_sizes:
        heading = f"memory, training, batch {batch} (MB)"
        try:
            costs[heading] = training_memory(network, input_size, batch_size=batch)
        except UserError:
            costs[heading] = None
    return costs


def latency_table(plan: Variants, costs: Sequence[Cost]) -> Table:
    """The latency of each variant for each workload."""
    table = Table(title=f"latency of {plan.name} at {by(plan.input_size)}, milliseconds")
    table.add_column("", no_wrap=True)
    for heading in ("p50", r"\[p10, p90]"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(r"ratio \[99 %]")
    table.add_column("verdict")
    for index, workload in enumerate(plan.workloads):
        timings = {n: c.timings[index] for n, c in zip(plan.networks, costs, strict=True)}
        reference = timings[plan.reference]
        table.add_row(f"[bold]{workload}")
        for name, timing in timings.items():
            latency = timing.latency
            table.add_row(
                f"  {name}",
                f"{'' if latency.stable else '* '}{latency.p50_ms:.2f}",
                rf"\[{latency.p10_ms:.2f}, {latency.p90_ms:.2f}]",
                *_verdict(
                    None if timing is reference else compare_turns(reference.turns, timing.turns)
                ),
            )
        table.add_section()
    table.caption = _legend([timing for cost in costs for timing in cost.timings], plan)
    table.caption_justify = "left"
    return table


def _legend(timings: Sequence[Timing], plan: Variants) -> str:
    latencies = [timing.latency for timing in timings]
    layouts = dict.fromkeys(f"{x.runtime} {x.memory_format}" for x in latencies)
    threads = latencies[0].threads
    lines = [
        f"{latencies[0].device_name}, {threads} thread{'' if threads == 1 else 's'}; "
        + ", ".join(layouts),
        "times of a whole batch on random input, each network in its turn; median of "
        f"{min(x.runs for x in latencies):,} runs or more",
        f"ratio: to {plan.reference}; no difference: its 99 % interval includes 1, or it is "
        "within 3 % of 1",
    ]
    if not all(x.stable for x in latencies):
        lines.append(
            "* unstable: the median moved by 5 % or p10 and p90 lie 30 % apart; measure again on "
            "a quiet machine"
        )
    return "\n".join([*lines, *map(escape, plan.notes)])


def _verdict(comparison: LatencyComparison | None) -> tuple[str, str]:
    if comparison is None:
        return "", "reference"
    c = comparison
    return rf"{c.ratio:.2f} \[{c.low:.2f}, {c.high:.2f}]", c.verdict
