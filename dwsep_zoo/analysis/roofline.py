"""The time of each unit of a network against the ceilings of the device.

The roofline of Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785, with a third
ceiling: the fixed cost of calling an operator, which bounds the small units of an eager network.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dwsep_zoo.analysis.latency import device_name, torch_threads
from dwsep_zoo.analysis.peaks import Peaks, measure_peaks, traffic_of
from dwsep_zoo.analysis.stopwatch import (
    Clock,
    HookCost,
    Pass,
    device_clock,
    hook_cost,
    time_plain,
    time_units,
)
from dwsep_zoo.analysis.units import KINDS, REST, Work, units, works
from dwsep_zoo.errors import UserError, choose

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP_RUNS, LEAST_ROUNDS = 3, 10


@dataclass(frozen=True)
class LayerTime:
    """One unit of a network.

    Attributes:
        kind: one of ``units.KINDS``.
        macs: multiply-adds of one image.
        bytes: input, output and weights, each once, of a batch.
        time_ms: median for a batch, the cost of the hooks taken off.
        bound: the ceiling that takes longest: ``compute`` (2 FLOPs a MAC over the
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
        """Multiply-adds of one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def sum_ms(self) -> float:
        """Time of all units, of which shares are taken."""
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
        """Read what ``dataclasses.asdict`` gave, by way of JSON too.

        Raises:
            ValueError: in one line, naming the first field that does not fit.
        """
        from pydantic import TypeAdapter, ValidationError  # slow to import

        try:
            return TypeAdapter(cls).validate_python(dict(values))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


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
        models: by name; each takes ``(N, C, H, W)``.
        input_size: ``(C, H, W)``.
        batch_size: images in a batch; all times are for the whole batch.
        precision: ``fp32``, ``bf16`` or ``fp16``, of weights and activations.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; ``None``: torch's setting.
        min_run_time: seconds of measuring for each network; at least 10 rounds are made.
        peaks: the device's ceilings, if already measured.
        clock: replaces the device's, for tests.

    Raises:
        UserError: for a value that is not possible.
    """
    device = torch.device(device)
    dtype = _check(len(models), batch_size, precision, device, threads)
    channels, height, width = input_size
    work = {name: works(model, input_size) for name, model in models.items()}
    clock = clock or device_clock(device)
    with torch_threads(threads or torch.get_num_threads()), torch.inference_mode():
        cost = hook_cost(device, clock)
        peaks = peaks or measure_peaks(device, dtype, clock, cost)
        x = torch.randn(batch_size, *input_size, device=device)
        x = x.to(dtype).to(memory_format=torch.channels_last)
        passes = {name: _Passes(_copy(model, x), clock, cost) for name, model in models.items()}
        runs = _take_turns(list(passes.values()), x, min_run_time)
    return Roofline(
        device=device.type,
        device_name=device_name(device),
        threads=threads or torch.get_num_threads(),
        batch_size=batch_size,
        input_size=(channels, height, width),
        precision=precision,
        memory_format="channels_last",
        runtime="eager",
        runs=runs,
        peaks=peaks,
        networks=tuple(
            _network_time(name, work[name], own, peaks, batch_size, dtype.itemsize)
            for name, own in passes.items()
        ),
    )


def _check(
    models: int, batch_size: int, precision: str, device: torch.device, threads: int | None
) -> torch.dtype:
    if not models:
        raise UserError("no networks to measure")
    for key, value in {"batch_size": batch_size, "threads": threads}.items():
        if value is not None and value < 1:
            raise UserError(f"{key} must be at least 1; got {value}")
    choose(precision, PRECISIONS, "precision")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}: there is no CUDA device; use device=cpu")
    return PRECISIONS[precision]


def _take_turns(passes: Sequence[_Passes], x: Tensor, min_run_time: float) -> int:
    """Run networks in turns; the number of rounds."""
    for own, _ in itertools.product(passes, range(WARM_UP_RUNS)):
        own.run(x)
    for own in passes:
        own.forget()
    stop = time.perf_counter() + min_run_time * len(passes)
    rounds = 0
    while rounds < LEAST_ROUNDS or time.perf_counter() < stop:
        for own in passes:
            own.run(x)
        rounds += 1
    return rounds


class _Passes:
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


def _copy(model: nn.Module, x: Tensor) -> nn.Module:
    twin = copy.deepcopy(model).eval()
    return twin.to(device=x.device, dtype=x.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _network_time(
    name: str,
    work: Sequence[Work],
    passes: _Passes,
    peaks: Peaks,
    batch_size: int,
    itemsize: int,
) -> NetworkTime:
    """Combine the work of a network and its timed passes into medians and bounds."""
    layers, roofs = [], []
    for unit, times in zip(
        work, zip(*(p.units_ms for p in passes.hooked), strict=True), strict=True
    ):
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
    rest_ms = statistics.median(p.rest_ms for p in passes.hooked)
    kinds = [_kind_time(kind, [la for la in layers if la.kind == kind]) for kind in KINDS]
    return NetworkTime(
        name=name,
        total_ms=statistics.median(passes.plain),
        hooked_ms=statistics.median(p.total_ms for p in passes.hooked),
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
