"""The cost of networks on this machine: latency, memory, and the time of each layer.

The end of a run, a sweep and ``dwsep profile`` all measure with :func:`measure_cost`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dwsep_zoo.analysis.latency import BATCHES, Timing, time_models
from dwsep_zoo.analysis.memory import inference_memory, training_memory
from dwsep_zoo.analysis.roofline import measure_roofline
from dwsep_zoo.analysis.runtimes import Workload
from dwsep_zoo.schema.roofline import Roofline


@dataclass(frozen=True)
class Cost:
    """The measured cost of one network.

    Attributes:
        timings: one for each workload, in their order.
        memory: peaks of one inference and of one training step; empty if not measured.
        roofline: times of the layers; ``None`` if not measured.
    """

    timings: tuple[Timing, ...]
    memory: Mapping[str, float]
    roofline: Roofline | None

    def record(self) -> dict[str, Any]:
        """``latency``, ``memory`` and ``roofline`` as ``result.json`` holds them."""
        return {
            "latency": [timing.latency.plain() for timing in self.timings],
            "memory": dict(self.memory),
            "roofline": self.roofline and self.roofline.plain(),
        }


def measure_cost(
    models: Mapping[str, nn.Module],
    input_size: Sequence[int],
    workloads: Sequence[Workload],
    *,
    train_batch_size: int | None = None,
    roofline: Workload | None = None,
    min_run_time: float = 1.0,
    least_turns: int = BATCHES,
    patience: float = 0.0,
    say: Callable[[str], None] = lambda what: None,
) -> list[Cost]:
    """Measure networks in turns.

    Args:
        models: by name; they stay as they are.
        input_size: ``(C, H, W)`` of an image.
        workloads: the conditions of the latencies.
        train_batch_size: images of a training step; ``None``: do not measure memory.
        roofline: the conditions of the times of single layers; ``None``: do not measure them.
        min_run_time: seconds for each network and workload.
        least_turns: of each workload, if that takes longer.
        patience: seconds for further attempts at a workload while the times are unsteady.
        say: called with a description of each measurement.

    Raises:
        UserError: for conditions that cannot be measured here.
    """
    timings = []
    for workload in workloads:
        say(str(workload))
        timed = time_models(
            models,
            input_size,
            workload,
            min_run_time=min_run_time,
            least_turns=least_turns,
            patience=patience,
        )
        timings.append(timed)
    layers = None
    if roofline is not None:
        say("each layer")
        layers = measure_roofline(models, input_size, roofline, min_run_time=min_run_time)
    return [
        Cost(
            timings=tuple(timing[name] for timing in timings),
            memory=_memory(model, input_size, train_batch_size) if train_batch_size else {},
            roofline=layers and layers.only(layers.network(name)),
        )
        for name, model in models.items()
    ]


def _memory(model: nn.Module, input_size: Sequence[int], train_batch_size: int) -> dict[str, float]:
    training = training_memory(model, input_size, batch_size=train_batch_size)
    return {
        "inference_mb": inference_memory(model, input_size) / 1e6,
        "training_mb": training / 1e6,
        "batch_size": train_batch_size,
    }
