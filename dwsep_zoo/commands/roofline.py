"""Tables of a roofline: time by kind of unit, and the slowest layers."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table

from dwsep_zoo.analysis.bottleneck import conditions, gaps, percent
from dwsep_zoo.analysis.roofline import NetworkTime, Roofline
from dwsep_zoo.analysis.units import KINDS

SLOWEST = 5  # layers of each network in the tables


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
            percent(unit.time_ms / network.sum_ms),
            unit.bound,
            percent(unit.attained) if unit.layers else "",
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
            percent(layer.time_ms / network.sum_ms),
            layer.bound,
            percent(layer.attained),
        )
    return table


def _table(title: str, *headings: str, words: int = 0) -> Table:
    table = Table(title=title or " ", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, heading in enumerate(headings):
        is_word = i < words or heading in ("unit", "bound")
        table.add_column(heading, justify="left" if is_word else "right", no_wrap=True)
    return table


def _ms(time_ms: float) -> str:
    return f"{time_ms:.{3 if time_ms < 10 else 2 if time_ms < 100 else 1}f}"
