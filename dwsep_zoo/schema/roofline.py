"""A roofline as it is recorded: works, times of units, and ceilings; read without PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ConfigDict

from dwsep_zoo.errors import choose
from dwsep_zoo.schema.record import Conditions

SQUEEZE_EXCITE, DEPTHWISE, NORM_ACT = "squeeze-excite", "depthwise", "norm/act"
SHORTCUT, POOLING = "shortcut", "pooling"
NORM, OTHER = "norm", "other"  # operators besides the kinds of convolution
REST = "rest"  # Python between the units, and modules that do nothing at inference
KINDS = (
    "stem",
    "expansion",
    "dense",
    "grouped",
    DEPTHWISE,
    "pointwise",
    SQUEEZE_EXCITE,
    NORM_ACT,
    SHORTCUT,
    POOLING,
    "head",
    REST,
)
"""The functions of units, in display order."""


@dataclass(frozen=True)
class Work:
    """The work of one unit for an image.

    Attributes:
        macs: multiply-adds of convolutions and linear layers.
        macs_inside: those of them that are not on padding, which takes no arithmetic.
        activations: numbers read and written.
        weights: numbers read once for a whole batch.
        calls: operators that are called, see :func:`operator`.
    """

    name: str
    kind: str
    macs: int
    macs_inside: int
    activations: int
    weights: int
    calls: tuple[str, ...]


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per nanosecond where ``traffic`` bytes are read and written again and again."""

    traffic: int
    gb_s: float


@dataclass(frozen=True)
class Peaks:
    """The ceilings of one device, at one precision and number of threads.

    They are the best of many runs, not medians: the speed of an undisturbed device.

    Attributes:
        gflop_s: rate of the fastest matrix product or convolution (1 MAC = 2 FLOPs).
        bandwidths: by traffic, ascending; the fastest of copying, scaling in place and summing.
        call_ms: on one pixel, the fixed cost of calling an operator, by the name that
            :func:`~dwsep_zoo.analysis.units.operator` gives it.
    """

    gflop_s: float
    bandwidths: tuple[Bandwidth, ...]
    call_ms: Mapping[str, float]

    def bandwidth(self, traffic: float) -> float:
        """GB/s for so many bytes: on a line between the measured ones, in the traffic's logarithm.

        It never rises with the traffic, as small ones are measured with the cost of a call in them.
        """
        import numpy as np  # not needed to read a record

        logs = np.log([b.traffic for b in self.bandwidths])
        falling = np.maximum.accumulate([b.gb_s for b in self.bandwidths][::-1])[::-1]
        return float(np.interp(math.log(max(traffic, 1)), logs, falling))

    def limits(self, work: Work, batch_size: int, itemsize: int) -> dict[str, float]:
        """The least milliseconds that arithmetic, memory and the calls alone would take."""
        traffic = traffic_of(work, batch_size, itemsize)
        return {
            "compute": 2 * work.macs_inside * batch_size / self.gflop_s / 1e6,
            "memory": traffic / self.bandwidth(traffic) / 1e6,
            "overhead": sum(self.call_ms[name] for name in work.calls),
        }


def traffic_of(work: Work, batch_size: int, itemsize: int) -> int:
    """Bytes that a unit has to move for a batch: its input, output and weights, each once."""
    return (work.activations * batch_size + work.weights) * itemsize


@dataclass(frozen=True)
class LayerTime:
    """One unit of a network.

    Attributes:
        kind: one of ``KINDS``.
        macs: multiply-adds of one image.
        intensity: FLOP per byte; taps on padding are no FLOP.
        bytes: input, output and weights, each once, of a batch.
        time_ms: median for a batch, the cost of the hooks taken off.
        bound: the ceiling that takes longest: ``compute`` (FLOPs over the arithmetic
            rate), ``memory`` (bytes over the bandwidth at that traffic) or ``overhead``
            (the calls of the unit's operators, each as long as on one pixel).
        attained: roofline time, the longer of the first two, over ``time_ms``.
    """

    name: str
    kind: str
    macs: int
    bytes: int
    intensity: float
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


class Roofline(Conditions):
    """Networks measured in turns on one device, and the device's ceilings."""

    model_config = ConfigDict(strict=False)  # JSON has lists

    input_size: tuple[int, int, int]
    runs: int
    peaks: Peaks
    networks: tuple[NetworkTime, ...]

    def network(self, name: str) -> NetworkTime:
        """Raises UserError if there is none of that name."""
        networks = {network.name: network for network in self.networks}
        return networks[choose(name, networks, "network")]

    def only(self, *networks: NetworkTime) -> Roofline:
        """The same measurement with these networks."""
        return self.model_copy(update={"networks": networks})


def attained(layers: Sequence[LayerTime]) -> float:
    """The fraction of the device's ceilings that these units together reach."""
    time_ms = sum(layer.time_ms for layer in layers)
    return sum(layer.attained * layer.time_ms for layer in layers) / time_ms if time_ms else 0.0
