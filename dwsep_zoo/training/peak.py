"""The most memory that one run holds, also where other runs came before it in the same process."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from dwsep_zoo.training.malloc import give_back

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): the peak of the resident set becomes its size


class PeakMemory:
    """Begins to watch a CUDA device's memory, or the resident memory of this process on Linux."""

    def __init__(self, device: torch.device):
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(device)
            return
        give_back()
        try:
            _CLEAR.write_text(_RESET_PEAK)
            self.known = True
        except OSError:  # another system, or a sandbox
            self.known = False

    def megabytes(self) -> float | None:
        """Most that was held since; ``None`` where the system cannot tell one run from the next."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        if not self.known:
            return None
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
