"""The measurements that a run and a sweep record of their networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import nn

from dwsep_zoo.analysis.cost import measure_cost
from dwsep_zoo.analysis.runtimes import RUNTIMES, Workload
from dwsep_zoo.schema.settings import ProfileSettings


def profile(
    models: Mapping[str, nn.Module],
    input_size: Sequence[int],
    settings: ProfileSettings,
    device: torch.device,
    *,
    train_batch_size: int,
) -> list[dict[str, Any]]:
    """Measure on the CPU and on the GPU that trained; one record for each network.

    Args:
        models: by name.
        input_size: ``(C, H, W)`` of an image.
        settings: the workloads.
        device: where they were trained.
        train_batch_size: images of a training step, for its memory.
    """
    devices = [torch.device("cpu"), *([device] if device.type == "cuda" else [])]
    every = product(devices, settings.runtimes, settings.precisions, settings.batch_sizes)
    costs = measure_cost(
        models,
        input_size,
        [
            Workload(runtime, precision, batch_size, where)
            for where, runtime, precision, batch_size in every
            if where.type in RUNTIMES[runtime].devices
        ],
        train_batch_size=train_batch_size,
        patience=settings.patience,
        roofline=Workload(device=devices[-1]) if settings.roofline else None,
    )
    return [cost.record() for cost in costs]
