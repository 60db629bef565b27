"""Keep the C library from giving memory back to the system between training steps.

Every step on the CPU allocates and frees the same large tensors. The GNU C library maps blocks of
more than 32 MB anew each time and trims its heap, so that the kernel has to clear every page again
at every step.
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1


def keep_memory() -> bool:
    """Tell glibc to keep what it has; returns whether there was a glibc to tell."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))


def give_back() -> None:
    """Return to the system what is free now, whatever glibc was told to keep."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
