"""Where PyTorch's own kernels compute instead of the fast ways here, wanted or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

fallbacks: Counter[str] = Counter()
"""Calls in this process that the fast ways do not cover, by reason; ``clear()`` before counting.

What a CUDA graph replays is not counted, nor plain convolutions within compiled code, which are
those on a device that is neither a CPU nor a GPU of CUDA.
"""

_plain = False


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Everything within it is computed by PyTorch's own kernels: to compare with."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def plain() -> bool:
    """Whether this is within :func:`plain_kernels`."""
    return _plain
