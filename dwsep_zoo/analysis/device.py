"""A device's name, clock, threads and fast number format."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Clock:
    """Marks of time, and the milliseconds between two of them, known after ``wait``."""

    now: Callable[[], Any]
    ms: Callable[[Any, Any], float]
    wait: Callable[[], object]

    def time(self, run: Callable[[], object]) -> float:
        """Milliseconds of one call, on an idle device."""
        self.wait()
        start = self.now()
        run()
        end = self.now()
        self.wait()
        return self.ms(start, end)


def device_clock(device: torch.device) -> Clock:
    """The processor's clock, or events in the accelerator's own stream."""
    if device.type != "cuda":
        return Clock(time.perf_counter_ns, lambda start, end: (end - start) / 1e6, lambda: None)
    stream = torch.cuda.current_stream(device)
    return Clock(
        lambda: stream.record_event(torch.cuda.Event(enable_timing=True)),
        lambda start, end: float(start.elapsed_time(end)),
        stream.synchronize,
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


def has_fast_bfloat16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 matrices faster than those of float32.

    Args:
        device: ``cpu``, ``cuda`` or another type.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Have torch compute with so many threads."""
    own = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(own)
