"""How long a network takes for one batch."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dwsep_zoo.errors import UserError

WARM_UP_S = 0.2
MIN_RUNS = 20


@dataclass(frozen=True)
class Latency:
    """Time for one batch, in milliseconds, with the conditions without which it means nothing."""

    p50_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    device: str
    device_name: str
    threads: int
    batch_size: int
    precision: str
    memory_format: str
    runtime: str


def measure_latency(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int = 1,
    threads: int | None = None,
    device: str | torch.device = "cpu",
    min_run_time: float = 1.0,
) -> Latency:
    """Time eager float32 inference in channels_last, on random input.

    The network is put into eval mode, moved to ``device`` and warmed up; afterwards it is back in
    the mode and place in which it was.

    Args:
        model: takes ``(N, C, H, W)``.
        input_size: ``(C, H, W)``.
        batch_size: images per run; the times are for the whole batch.
        threads: CPU threads; ``None``: torch's setting.
        device: where to run.
        min_run_time: seconds of measuring; at least 20 runs are made.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {batch_size}")
    device = torch.device(device)
    threads = threads or torch.get_num_threads()
    home, training = next(model.parameters()).device, model.training
    model.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(batch_size, *input_size, device=device)
    x = x.to(memory_format=torch.channels_last)
    own_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            _run_for(model, x, WARM_UP_S, least=3)
            times = torch.tensor(_run_for(model, x, min_run_time, least=MIN_RUNS)) * 1e3
    finally:
        torch.set_num_threads(own_threads)
        model.train(training).to(home)
    p10, p50, p90 = torch.quantile(times, torch.tensor([0.1, 0.5, 0.9])).tolist()
    return Latency(
        p50_ms=p50,
        p10_ms=p10,
        p90_ms=p90,
        runs=len(times),
        device=device.type,
        device_name=device_name(device),
        threads=threads,
        batch_size=batch_size,
        precision="fp32",
        memory_format="channels_last",
        runtime="eager",
    )


def device_name(device: torch.device) -> str:
    """The processor's or the accelerator's product name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _run_for(model: nn.Module, x: Tensor, seconds: float, least: int) -> list[float]:
    """Seconds of each run."""
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < stop:
        start = time.perf_counter()
        model(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        times.append(time.perf_counter() - start)
    return times
