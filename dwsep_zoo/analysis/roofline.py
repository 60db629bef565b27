"""The time of each unit of a network against the ceilings of the device.

The roofline of Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785, with a third
ceiling: the fixed cost of calling an operator, which bounds the small units of an eager network.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dwsep_zoo.analysis.count import common_shape
from dwsep_zoo.analysis.device import Clock, device_clock, device_name, torch_threads
from dwsep_zoo.analysis.peaks import measure_peaks
from dwsep_zoo.analysis.runtimes import Workload, as_input, copied, random_input
from dwsep_zoo.analysis.stopwatch import HookCost, Pass, hook_cost, time_units
from dwsep_zoo.analysis.units import units, works
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.roofline import (
    KINDS,
    REST,
    KindTime,
    LayerTime,
    NetworkTime,
    Peaks,
    Roofline,
    Work,
    attained,
    traffic_of,
)

WARM_UP_TURNS, LEAST_TURNS = 3, 10


def measure_roofline(
    models: Mapping[str, nn.Module],
    input_size: Sequence[int] | None = None,
    workload: Workload | None = None,
    *,
    min_run_time: float = 1.0,
    peaks: Peaks | None = None,
    clock: Clock | None = None,
) -> Roofline:
    """Time every unit of each network in eager inference, channels_last, on random input.

    The networks are copied, not changed, and run in turns (A B A B), with and without hooks.

    Args:
        models: by name; each takes ``(N, C, H, W)``.
        input_size: ``(C, H, W)``; ``None``: the networks' own.
        workload: the other conditions; all times are for its whole batch.
        min_run_time: seconds of measuring for each network; at least 10 rounds are made.
        peaks: the device's ceilings, if already measured.
        clock: replaces the device's, for tests.

    Raises:
        UserError: for a value that is not possible.
    """
    if not models:
        raise UserError("no networks to measure")
    workload = replace(workload or Workload(), runtime="eager", memory_format="channels_last")
    workload.check()
    device, threads = torch.device(workload.device), workload.threads or torch.get_num_threads()
    dtype, _ = workload.tensors()
    shape = common_shape(models.values(), input_size)
    work = {name: works(model, shape) for name, model in models.items()}
    clock = clock or device_clock(device)
    with torch_threads(threads), torch.inference_mode():
        cost = hook_cost(device, clock)
        peaks = peaks or measure_peaks(device, dtype, clock, cost)
        x = as_input(random_input(workload.batch_size, shape), workload)
        networks = [copied(model, workload) for model in models.values()]
        turns = _take_turns(networks, x, clock, cost, min_run_time)
    conditions = {**vars(workload), "device": device.type, "threads": threads}
    return Roofline(
        **conditions,
        device_name=device_name(device),
        input_size=shape,
        runs=len(turns),
        peaks=peaks,
        networks=tuple(
            _network_time(name, work[name], passes, peaks, workload.batch_size, dtype.itemsize)
            for name, passes in zip(models, zip(*turns, strict=True), strict=True)
        ),
    )


def _take_turns(
    models: Sequence[nn.Module], x: Tensor, clock: Clock, cost: HookCost, min_run_time: float
) -> list[list[Pass]]:
    """The passes of each network, by turn."""
    parts = [list(units(model)) for model in models]

    def turn() -> list[Pass]:
        passes = []
        for model, own in zip(models, parts, strict=True):
            model(x)  # not timed: the caches are those of the network before
            passes.append(time_units(model, own, x, clock, cost))
        return passes

    for _ in range(WARM_UP_TURNS):
        turn()
    stop = time.perf_counter() + min_run_time * len(models)
    turns: list[list[Pass]] = []
    while len(turns) < LEAST_TURNS or time.perf_counter() < stop:
        turns.append(turn())
    return turns


def _network_time(
    name: str,
    work: Sequence[Work],
    passes: Sequence[Pass],
    peaks: Peaks,
    batch_size: int,
    itemsize: int,
) -> NetworkTime:
    """Combine the work of a network and its timed passes into medians and bounds."""
    layers = []
    for unit, *times in zip(work, *(p.units_ms for p in passes), strict=True):
        limits = peaks.limits(unit, batch_size, itemsize)
        traffic = traffic_of(unit, batch_size, itemsize)
        time_ms = statistics.median(times)
        roof = max(limits["compute"], limits["memory"])
        layers.append(
            LayerTime(
                name=unit.name,
                kind=unit.kind,
                macs=unit.macs,
                bytes=traffic,
                intensity=2 * unit.macs_inside * batch_size / traffic,
                time_ms=time_ms,
                bound=max(limits, key=limits.__getitem__),
                attained=roof / time_ms if time_ms else 0.0,
            )
        )
    by_kind = {kind: [layer for layer in layers if layer.kind == kind] for kind in KINDS}
    rest_ms = statistics.median(p.rest_ms for p in passes)
    return NetworkTime(
        name=name,
        total_ms=statistics.median(p.plain_ms for p in passes),
        hooked_ms=statistics.median(p.hooked_ms for p in passes),
        layers=tuple(layers),
        units=(
            *(_kind_time(kind, own) for kind, own in by_kind.items() if own),
            KindTime(REST, 0, 0, 0, rest_ms, "overhead", 0.0),
        ),
    )


def _kind_time(kind: str, layers: Sequence[LayerTime]) -> KindTime:
    by_bound: dict[str, float] = {}
    for layer in layers:
        by_bound[layer.bound] = by_bound.get(layer.bound, 0.0) + layer.time_ms
    return KindTime(
        kind=kind,
        layers=len(layers),
        macs=sum(layer.macs for layer in layers),
        bytes=sum(layer.bytes for layer in layers),
        time_ms=sum(by_bound.values()),
        bound=max(by_bound, key=by_bound.__getitem__),
        attained=attained(layers),
    )
