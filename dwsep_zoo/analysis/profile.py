"""A network's variants beside each other: size, arithmetic, memory, and latency by runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from dwsep_zoo.analysis.count import count
from dwsep_zoo.analysis.explain import UNIT
from dwsep_zoo.analysis.latency import LatencyComparison, Timing, compare_turns, time_models
from dwsep_zoo.analysis.memory import inference_memory, state_dict_bytes, training_memory
from dwsep_zoo.analysis.runtimes import DTYPES, RUNTIMES, available_runtimes, check_conditions
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.models import build_model
from dwsep_zoo.nn import CONVS

DEFAULT_RUNTIMES = (
    "eager",
    "fused",
    "onnxruntime",
    "openvino",
)  # compiling takes a minute a network


@dataclass(frozen=True)
class Profile:
    """What is to be measured; everything in it can be.

    Attributes:
        name: of the model.
        networks: by conv type.
        input_size: ``(C, H, W)``.
        conditions: runtime and precision, as arguments of ``time_models``.
        notes: what was asked for and cannot be measured, and why.
    """

    name: str
    networks: Mapping[str, nn.Module]
    input_size: tuple[int, int, int]
    batch_sizes: tuple[int, ...]
    threads: int
    device: str
    conditions: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def reference(self) -> str:
        """The conv type that the others are compared with."""
        return "standard" if "standard" in self.networks else next(iter(self.networks))


@dataclass(frozen=True)
class Measured:
    """The networks of a profile, timed in turns under one condition; ``timings`` by conv type."""

    runtime: str
    precision: str
    batch_size: int
    timings: Mapping[str, Timing]

    def speed(self, reference: str, other: str) -> float:
        """How many times as fast as ``reference`` the ``other`` is."""
        a, b = self.timings[reference], self.timings[other]
        return 1 / compare_turns(a.turns, b.turns).ratio


def plan_profile(
    model: str,
    *,
    conv: Any = "standard,depthwise_separable",
    width_mult: float = 1.0,
    size: int | None = None,
    output_stride: int = 32,
    num_classes: int = 1000,
    in_chans: int = 3,
    batch_size: Any = 1,
    runtimes: Any = None,
    precision: Any = "fp32",
    threads: int | None = None,
    device: str = "cpu",
) -> Profile:
    """Check what a user asks for and build the networks; several values are a list or ``a,b``.

    Args:
        model: name of an architecture.
        conv: names of conv types.
        width_mult: factor on the channels.
        size: height and width of the images; ``None``: the paper's.
        output_stride: 32, 16 or 8.
        num_classes: outputs.
        in_chans: channels of the images.
        batch_size: images in a run.
        runtimes: names, or ``all``; ``None``: all but the two that compile.
        precision: fp32, bf16.
        threads: CPU threads; ``None``: torch's setting.
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: for what cannot be built or measured. Of several runtimes and precisions those
            pairs that do not exist are only noted.
    """
    convs = [choose(name, CONVS, "conv") for name in _several("conv", conv)]
    batch_sizes = [_whole("batch_size", value) for value in _several("batch_size", batch_size)]
    numbers = {
        "size": size,
        "threads": threads,
        "output_stride": output_stride,
        "num_classes": num_classes,
        "in_chans": in_chans,
    }
    for key, value in numbers.items():
        if value is not None:
            _whole(key, value)
    if not isinstance(width_mult, int | float):
        raise UserError(f"width_mult must be a number greater than 0; got {width_mult!r}")
    for batch in batch_sizes:
        check_conditions(batch_size=batch, threads=threads, device=device)
    conditions, notes = _conditions(runtimes, _several("precision", precision), device)
    networks = {
        name: build_model(
            model,
            conv=name,
            width_mult=width_mult,
            output_stride=output_stride,
            num_classes=num_classes,
            in_chans=in_chans,
        ).eval()
        for name in convs
    }
    default = networks[convs[0]].default_cfg["input_size"]
    height, width = (size, size) if size else default[1:]
    if height < output_stride:
        raise UserError(
            f"images of {height} pixels are smaller than the output stride {output_stride}; "
            "set output_stride=8 or a larger size"
        )
    return Profile(
        name=f"{model}, width {width_mult:g}",
        networks=networks,
        input_size=(in_chans, height, width),
        batch_sizes=tuple(batch_sizes),
        threads=threads or torch.get_num_threads(),
        device=device,
        conditions=tuple(conditions),
        notes=tuple(notes),
    )


def cost_table(profile: Profile) -> Table:
    """Parameters, multiply-adds, size and memory of the variants, and their ratios."""
    table = Table(
        title=f"{profile.name}, one image of {_by(profile.input_size)}",
        caption=f"{UNIT}; in brackets the ratio to {profile.reference}. Memory: the largest size "
        "of all tensors alive at once, in fp32, weights included; training: one forward and "
        "backward pass, without the optimizer's state",
        caption_justify="left",
    )
    table.add_column("")
    costs = {
        name: _costs(network, profile.input_size, profile.batch_sizes)
        for name, network in profile.networks.items()
    }
    for name in costs:
        table.add_column(name, justify="right", no_wrap=True)
    reference = costs[profile.reference]
    for quantity, of in reference.items():
        cells = []
        for name, values in costs.items():
            value = values[quantity]
            if value is None or of is None:
                cells.append("cannot be trained")
                continue
            cell = f"{value:,}" if quantity == "parameters" else f"{value / 1e6:,.1f}"
            ratio = "" if name == profile.reference else f" ({value / of:.2f}x)"
            cells.append(cell + ratio)
        table.add_row(quantity, *cells)
    return table


def measure(profile: Profile, say: Callable[[str], None], **options: Any) -> list[Measured]:
    """Measure latency under every condition.

    Args:
        profile: what to measure.
        say: is told what is being measured.
        options: further arguments of ``time_models``.
    """
    found = []
    for where, batch in product(profile.conditions, profile.batch_sizes):
        say(f"{where['runtime']} {where['precision']}, batch {batch}")
        timings = time_models(
            profile.networks,
            profile.input_size,
            batch_size=batch,
            threads=profile.threads,
            device=profile.device,
            **where,
            **options,
        )
        found.append(Measured(**where, batch_size=batch, timings=timings))
    return found


def latency_table(profile: Profile, measured: Sequence[Measured]) -> Table:
    """The latency of each variant under each condition."""
    table = Table(title=f"latency of {profile.name} at {_by(profile.input_size)}, milliseconds")
    table.add_column("", no_wrap=True)
    for heading in ("p50", r"\[p10, p90]"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(r"ratio \[99 %]")
    table.add_column("verdict")
    for one in measured:
        reference = one.timings[profile.reference]
        table.add_row(f"[bold]{one.runtime} {one.precision}, batch {one.batch_size}")
        for name, timing in one.timings.items():
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
    timings = [timing for one in measured for timing in one.timings.values()]
    table.caption = _legend(timings, profile)
    table.caption_justify = "left"
    return table


def _legend(timings: Sequence[Timing], profile: Profile) -> str:
    latencies = [timing.latency for timing in timings]
    layouts = dict.fromkeys(f"{x.runtime} {x.memory_format}" for x in latencies)
    lines = [
        f"{latencies[0].device_name}, {_counted(latencies[0].threads, 'thread')}; "
        + ", ".join(layouts),
        "times of a whole batch on random input, each network in its turn; median of "
        f"{min(x.runs for x in latencies):,} runs or more",
        f"ratio: to {profile.reference}; no difference: its 99 % interval includes 1, or it is "
        "within 3 % of 1",
    ]
    if not all(x.stable for x in latencies):
        lines.append(
            "* unstable: the median moved by 5 % or p10 and p90 lie 30 % apart; measure again on "
            "a quiet machine"
        )
    return "\n".join([*lines, *map(escape, profile.notes)])


def _verdict(comparison: LatencyComparison | None) -> tuple[str, str]:
    if comparison is None:
        return "", "reference"
    c = comparison
    return rf"{c.ratio:.2f} \[{c.low:.2f}, {c.high:.2f}]", c.verdict


def _conditions(
    runtimes: Any, precisions: Sequence[Any], device: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Those pairs of runtime and precision that can be measured, and notes on the others."""
    named = runtimes is not None and runtimes != "all"
    names = _several("runtimes", runtimes) if named else RUNTIMES if runtimes else DEFAULT_RUNTIMES
    for name in names:
        choose(name, RUNTIMES, "runtime")
    for precision in precisions:
        choose(precision, DTYPES, "precision")
    missing = available_runtimes()
    conditions: list[dict[str, Any]] = []
    notes = []
    for name in names:
        if not named and missing[name]:
            notes.append(f"{name} is absent; install it with: {missing[name]}")
            continue
        if missing[name]:
            check_conditions(runtime=name)  # says so
        for precision in precisions:
            try:
                check_conditions(runtime=name, precision=precision, device=device)
            except UserError as error:
                if len(names) * len(precisions) == 1:
                    raise
                notes.append(f"not measured: {error}")
            else:
                conditions.append({"runtime": name, "precision": precision})
    if not conditions:
        raise UserError("; ".join(notes))
    return conditions, notes


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


def _several(key: str, value: Any) -> list[Any]:
    """The values of ``a,b`` or of a list, each once."""
    values = value if isinstance(value, list | tuple) else str(value).split(",")
    if not values:
        raise UserError(f"{key}= is empty; give at least one value")
    return list(dict.fromkeys(v.strip() if isinstance(v, str) else v for v in values))


def _whole(key: str, value: Any) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(f"{key} must be a whole number from 1 up; got {value!r}")
    return int(value)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
