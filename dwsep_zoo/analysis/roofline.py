"""Where a network's time goes: each unit against what this device can do at most.

The roofline of Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785, for each unit of
a network, with a third ceiling: the fixed cost of calling an operator, which is what small units of
an eager network wait for.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dwsep_zoo.analysis.latency import device_name, torch_threads
from dwsep_zoo.analysis.peaks import Bandwidth, Peaks, measure_peaks, traffic_of
from dwsep_zoo.analysis.stopwatch import (
    Clock,
    HookCost,
    Pass,
    device_clock,
    hook_cost,
    time_plain,
    time_units,
)
from dwsep_zoo.analysis.units import (
    KINDS,
    NORM_ACT,
    POOLING,
    REST,
    SHORTCUT,
    Work,
    units,
    works,
)
from dwsep_zoo.errors import UserError, choose

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP_RUNS, LEAST_ROUNDS = 3, 10
BOUNDS = {"memory": "bandwidth-bound", "compute": "compute-bound", "overhead": "call-bound"}
ELEMENTWISE = dict.fromkeys((NORM_ACT, SHORTCUT, POOLING), "elementwise")
SLOWEST = 5  # layers of each network in the tables
CLOSES = 0.1  # of the time without hooks: how far the sum of the units may be from it
SAME_MACS, SAME_TIME, MOST_OF = 0.01, 0.05, 0.8  # fractions, of sentences


@dataclass(frozen=True)
class LayerTime:
    """One unit of a network.

    Attributes:
        kind: one of ``units.KINDS``.
        macs: multiply-adds of one image.
        bytes: input, output and weights, each once, of a batch.
        time_ms: median for a batch, the cost of the hooks taken off.
        bound: what takes longest at the device's ceilings: ``compute`` (2 FLOPs a MAC over the
            arithmetic rate), ``memory`` (bytes over the bandwidth at that traffic) or ``overhead``
            (the calls of the unit's operators, each as long as on one pixel).
        attained: roofline time, the longer of the first two, over ``time_ms``.
    """

    name: str
    kind: str
    macs: int
    bytes: int
    intensity: float  # FLOP per byte
    time_ms: float
    bound: str
    attained: float


@dataclass(frozen=True)
class KindTime:
    """All units of one kind; ``bound`` is that of the most time, the rest's is ``overhead``."""

    kind: str
    layers: int
    macs: int
    bytes: int
    time_ms: float
    bound: str
    attained: float


@dataclass(frozen=True)
class NetworkTime:
    """One network.

    Attributes:
        total_ms: median of a forward pass without hooks.
        hooked_ms: with them; what they cost is taken off the units.
        layers: in the order of execution.
        units: by kind; their times add up to about ``total_ms``.
    """

    name: str
    total_ms: float
    hooked_ms: float
    layers: tuple[LayerTime, ...]
    units: tuple[KindTime, ...]

    @property
    def macs(self) -> int:
        """Of one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def sum_ms(self) -> float:
        """Of all units: what shares are shares of."""
        return sum(unit.time_ms for unit in self.units)


@dataclass(frozen=True)
class Roofline:
    """Networks measured in turns on one device, and the device's ceilings."""

    device: str
    device_name: str
    threads: int
    batch_size: int
    input_size: tuple[int, int, int]
    precision: str
    memory_format: str
    runtime: str
    runs: int
    peaks: Peaks
    networks: tuple[NetworkTime, ...]

    def network(self, name: str) -> NetworkTime:
        """Raises UserError if there is none of that name."""
        networks = {network.name: network for network in self.networks}
        return networks[choose(name, networks, "network")]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Roofline:
        """The inverse of ``dataclasses.asdict``, by way of JSON too."""
        peaks, networks = values["peaks"], values["networks"]
        return cls(
            **{
                **values,
                "input_size": tuple(values["input_size"]),
                "peaks": Peaks(
                    **{**peaks, "bandwidths": tuple(Bandwidth(**b) for b in peaks["bandwidths"])}
                ),
                "networks": tuple(
                    NetworkTime(
                        **{
                            **network,
                            "layers": tuple(LayerTime(**layer) for layer in network["layers"]),
                            "units": tuple(KindTime(**unit) for unit in network["units"]),
                        }
                    )
                    for network in networks
                ),
            }
        )


def side_by_side(rooflines: Mapping[str, Roofline]) -> Roofline:
    """One of several of one network each, under new names; the ceilings are the first one's.

    Raises:
        UserError: if they were not measured under the same conditions.
    """
    first = next(iter(rooflines.values()))
    for name, roofline in rooflines.items():
        if _conditions(roofline) != _conditions(first):
            raise UserError(
                f"{name}: roofline measured on {conditions(roofline)}, the others on "
                f"{conditions(first)}"
            )
    return replace(
        first,
        networks=tuple(
            replace(network, name=name)
            for name, roofline in rooflines.items()
            for network in roofline.networks
        ),
    )


def _conditions(roofline: Roofline) -> Roofline:
    return replace(roofline, runs=0, peaks=Peaks(0.0, (), {}), networks=())


def conditions(roofline: Roofline) -> str:
    """Those without which a time means nothing."""
    r = roofline
    threads = f" {r.threads} thread{'s' if r.threads > 1 else ''}" if r.device == "cpu" else ""
    size = "x".join(map(str, r.input_size))
    return (
        f"{r.device} ({r.device_name}){threads}, {r.runtime}, {r.precision}, {r.memory_format}, "
        f"batch {r.batch_size}, input {size}"
    )


def measure_roofline(
    models: Mapping[str, nn.Module],
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int = 1,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    threads: int | None = None,
    min_run_time: float = 1.0,
    peaks: Peaks | None = None,
    clock: Clock | None = None,
) -> Roofline:
    """Time every unit of each network in eager inference, channels_last, on random input.

    The networks are copied, not changed, and run in turns (A B A B), with and without hooks.

    Args:
        models: by the names that tables and figures show; each takes ``(N, C, H, W)``.
        input_size: ``(C, H, W)``.
        batch_size: images in a batch; all times are for the whole batch.
        precision: ``fp32``, ``bf16`` or ``fp16``, of weights and activations.
        device: where to run.
        threads: CPU threads; ``None``: torch's setting.
        min_run_time: seconds of measuring for each network; at least 10 rounds are made.
        peaks: the device's ceilings, if they are known already.
        clock: another one than the device's, for tests.

    Raises:
        UserError: for a value that is not possible.
    """
    if not models:
        raise UserError("no networks to measure")
    for key, value in {"batch_size": batch_size, "threads": threads}.items():
        if value is not None and value < 1:
            raise UserError(f"{key} must be at least 1; got {value}")
    dtype = PRECISIONS[choose(precision, PRECISIONS, "precision")]
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}: there is no CUDA device; use device=cpu")
    channels, height, width = input_size
    work = {name: works(model, input_size) for name, model in models.items()}
    clock = clock or device_clock(device)
    with torch_threads(threads or torch.get_num_threads()), torch.inference_mode():
        cost = hook_cost(device, clock)
        peaks = peaks or measure_peaks(device, dtype, clock, cost)
        x = torch.randn(batch_size, *input_size, device=device).to(dtype)
        x = x.to(memory_format=torch.channels_last)
        timers = {
            name: _Timer(_copy(model, device, dtype), clock, cost) for name, model in models.items()
        }
        for timer, _ in itertools.product(timers.values(), range(WARM_UP_RUNS)):
            timer.run(x)
        for timer in timers.values():
            timer.forget()
        stop = time.perf_counter() + min_run_time * len(timers)
        runs = 0
        while runs < LEAST_ROUNDS or time.perf_counter() < stop:
            for timer in timers.values():
                timer.run(x)
            runs += 1
        used_threads = torch.get_num_threads()
    return Roofline(
        device=device.type,
        device_name=device_name(device),
        threads=used_threads,
        batch_size=batch_size,
        input_size=(channels, height, width),
        precision=precision,
        memory_format="channels_last",
        runtime="eager",
        runs=runs,
        peaks=peaks,
        networks=tuple(
            network_time(
                name, work[name], timer.plain, timer.hooked, peaks, batch_size, dtype.itemsize
            )
            for name, timer in timers.items()
        ),
    )


class _Timer:
    """A network's passes, without hooks and with them."""

    def __init__(self, model: nn.Module, clock: Clock, cost: HookCost):
        self.model, self.clock, self.cost = model, clock, cost
        self.parts = list(units(model))
        self.forget()

    def forget(self) -> None:
        self.plain: list[float] = []
        self.hooked: list[Pass] = []

    def run(self, x: Tensor) -> None:
        self.model(x)  # not timed: the caches are those of the network before
        self.plain.append(time_plain(self.model, x, self.clock))
        self.hooked.append(time_units(self.model, self.parts, x, self.clock, self.cost))


def _copy(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    twin = copy.deepcopy(model).eval()
    return twin.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def network_time(
    name: str,
    work: Sequence[Work],
    plain_ms: Sequence[float],
    passes: Sequence[Pass],
    peaks: Peaks,
    batch_size: int,
    itemsize: int,
) -> NetworkTime:
    """From what a network does and how long that took, several times, to medians and bounds."""
    layers, roofs = [], []
    for unit, times in zip(work, zip(*(p.units_ms for p in passes), strict=True), strict=True):
        limits = peaks.limits(unit, batch_size, itemsize)
        traffic = traffic_of(unit, batch_size, itemsize)
        time_ms = statistics.median(times)
        roofs.append(max(limits["compute"], limits["memory"]))
        layers.append(
            LayerTime(
                name=unit.name,
                kind=unit.kind,
                macs=unit.macs,
                bytes=traffic,
                intensity=2 * unit.macs * batch_size / traffic,
                time_ms=time_ms,
                bound=max(limits, key=limits.__getitem__),
                attained=roofs[-1] / time_ms if time_ms else 0.0,
            )
        )
    rest_ms = statistics.median(p.rest_ms for p in passes)
    kinds = [_kind_time(kind, [la for la in layers if la.kind == kind]) for kind in KINDS]
    return NetworkTime(
        name=name,
        total_ms=statistics.median(plain_ms),
        hooked_ms=statistics.median(p.total_ms for p in passes),
        layers=tuple(layers),
        units=(
            *(kind for kind in kinds if kind.layers),
            KindTime(REST, 0, 0, 0, rest_ms, "overhead", 0.0),
        ),
    )


def _kind_time(kind: str, layers: Sequence[LayerTime]) -> KindTime:
    time_ms = sum(layer.time_ms for layer in layers)
    by_bound: dict[str, float] = {}
    for layer in layers:
        by_bound[layer.bound] = by_bound.get(layer.bound, 0.0) + layer.time_ms
    return KindTime(
        kind=kind,
        layers=len(layers),
        macs=sum(layer.macs for layer in layers),
        bytes=sum(layer.bytes for layer in layers),
        time_ms=time_ms,
        bound=max(by_bound, key=by_bound.__getitem__, default="overhead"),
        attained=attained(layers),
    )


def attained(layers: Sequence[LayerTime]) -> float:
    """The fraction of the device's ceilings that these units together reach."""
    time_ms = sum(layer.time_ms for layer in layers)
    return sum(layer.attained * layer.time_ms for layer in layers) / time_ms if time_ms else 0.0


def sentence(roofline: Roofline, reference: str, other: str, speed: float | None = None) -> str:
    """What ``other`` saves against ``reference``, and what its time is made of.

    Args:
        roofline: of both.
        reference: name of the network that ``other`` is compared with.
        other: name of the network that is explained.
        speed: how many times as fast it is, where their latency was measured by itself; ``None``:
            by their passes without hooks.

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
    """What bounds the most time, and where."""
    rest = sum(unit.time_ms for unit in network.units if unit.kind == REST)
    times = {bound: [la for la in network.layers if la.bound == bound] for bound in BOUNDS}
    totals = {bound: _time(layers) for bound, layers in times.items()}
    totals["overhead"] += rest
    bound = max(totals, key=totals.__getitem__)
    if bound == "overhead":
        share = _percent(totals[bound] / network.sum_ms)
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
    share, reached = _percent(_time(named) / network.sum_ms), _percent(attained(named))
    listed = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return (
        f"{share} of the time of {network.name} is {BOUNDS[bound]} {listed} work, at {reached} of "
        "what this device can do"
    )


def _time(layers: Sequence[LayerTime]) -> float:
    return sum(layer.time_ms for layer in layers)


def _ms(time_ms: float) -> str:
    return f"{time_ms:.{3 if time_ms < 10 else 2 if time_ms < 100 else 1}f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def gaps(roofline: Roofline) -> list[str]:
    """A line for each network whose units do not add up to its time."""
    return [
        f"{network.name}: its units add up to {_percent(network.sum_ms / network.total_ms)} of "
        "its time; the machine may have been busy: measure again"
        for network in roofline.networks
        if abs(network.sum_ms / network.total_ms - 1) > CLOSES
    ]


def roofline_tables(roofline: Roofline) -> list[RenderableType]:
    """For a terminal of 100 columns: time by kind of unit, two networks a table; slowest layers.

    Where the units do not add up to the network's time, a line says so.
    """
    pairs = [roofline.networks[i : i + 2] for i in range(0, len(roofline.networks), 2)]
    return [
        *(_kinds_table(pair, roofline) for pair in pairs),
        *(_slowest_table(network) for network in roofline.networks),
        *gaps(roofline),
    ]


def _kinds_table(networks: Sequence[NetworkTime], roofline: Roofline) -> Table:
    from rich.table import Table

    kinds = [kind for kind in KINDS if any(unit.kind == kind for n in networks for unit in n.units)]
    names = _table("", "unit")
    for kind in kinds:
        names.add_row(kind)
    names.add_section()
    names.add_row("sum")
    names.add_row("without hooks")
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
    grid.add_row(names, *(_kinds_of(network, kinds) for network in networks))
    return grid


def _kinds_of(network: NetworkTime, kinds: Sequence[str]) -> Table:
    table = _table(network.name, "MACs M", "ms", "share", "bound", "peak")
    units = {unit.kind: unit for unit in network.units}
    for kind in kinds:
        unit = units.get(kind)
        if unit is None:
            table.add_row("-", "-", "-", "-", "-")
            continue
        table.add_row(
            f"{unit.macs / 1e6:.1f}" if unit.macs else "",
            _ms(unit.time_ms),
            _percent(unit.time_ms / network.sum_ms),
            unit.bound,
            _percent(unit.attained) if unit.layers else "",
        )
    table.add_section()
    table.add_row(f"{network.macs / 1e6:.1f}", _ms(network.sum_ms), "100 %", "", "")
    table.add_row("", _ms(network.total_ms), "", "", "")
    return table


def _slowest_table(network: NetworkTime) -> Table:
    heads = ("layer", "unit", "MACs M", "MB", "FLOP/B", "ms", "share", "bound", "peak")
    table = _table(f"{network.name}: slowest layers", *heads, words=2)
    slowest = sorted(network.layers, key=lambda layer: -layer.time_ms)[:SLOWEST]
    for layer in slowest:
        table.add_row(
            layer.name,
            layer.kind,
            f"{layer.macs / 1e6:.1f}" if layer.macs else "",
            f"{layer.bytes / 1e6:.2f}",
            f"{layer.intensity:.1f}" if layer.macs else "",
            _ms(layer.time_ms),
            _percent(layer.time_ms / network.sum_ms),
            layer.bound,
            _percent(layer.attained),
        )
    return table


def _table(title: str, *headings: str, words: int = 0) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title or " ", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, heading in enumerate(headings):
        is_word = i < words or heading in ("unit", "bound")
        table.add_column(heading, justify="left" if is_word else "right", no_wrap=True)
    return table
