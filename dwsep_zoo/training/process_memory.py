"""The memory of this process: kept between training steps, and measured at its peak.

Every step on the CPU allocates and frees the same large tensors. The GNU C library maps blocks of
more than 32 MB anew each time and trims its heap, so the kernel would have to clear every page
again at every step.
"""

from __future__ import annotations

import ctypes
import gc
import platform
from pathlib import Path

import torch

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): set the peak of the resident set to its current size


def keep_memory() -> bool:
    """Tell glibc to keep the memory it has; returns whether the C library is glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))


def give_back() -> None:
    """Return free memory to the system, in spite of :func:`keep_memory`."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """The peak memory of one run, even if other runs came before it in the same process.

    Watches the memory of a CUDA device, or the resident memory of this process on Linux, from its
    creation on.
    """

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
        """The peak so far; ``None`` where the system cannot tell one run from the next."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        if not self.known:
            return None
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
