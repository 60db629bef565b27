"""Where PyTorch's own kernels compute instead of the fast ways here, wanted or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx

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


def plain(x: object) -> bool:
    """Whether only PyTorch's own operators will do for ``x``.

    So it is within :func:`plain_kernels`, in what is exported or traced, and under the transforms
    of ``torch.func``, which know no others.
    """
    return (
        _plain
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
        or isinstance(x, fx.Proxy)
        or (
            not torch.compiler.is_compiling()
            and torch._C._functorch.maybe_current_level() is not None
        )
    )
