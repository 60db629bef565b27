"""Fallbacks to PyTorch's kernels, requested or forced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx

fallbacks: Counter[str] = Counter()
"""Number of calls without a fast kernel in this process, by reason; ``clear()`` before counting.

Replays of a CUDA graph are not counted, nor plain convolutions in compiled code, which occur on
devices other than CPU and CUDA.
"""

_plain = False


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Compute everything inside this context with PyTorch's kernels, for comparison."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def plain(x: object) -> bool:
    """Whether ``x`` requires PyTorch's operators.

    This holds inside :func:`plain_kernels`, during export and tracing, and under the transforms of
    ``torch.func``, which support no custom operators.
    """
    return (
        _plain
        # is_exporting() is also true under the torch.compile of torch 2.9.
        or torch.compiler._is_exporting_flag
        or torch.jit.is_tracing()
        or isinstance(x, fx.Proxy)
        or (
            not torch.compiler.is_compiling()
            and torch._C._functorch.maybe_current_level() is not None
        )
    )
