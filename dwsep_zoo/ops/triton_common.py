"""Common parts of the Triton kernels: availability, activations, block sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, no_type_check

import torch

from dwsep_zoo.errors import first_line

try:
    import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ImportError:  # not on every platform; see `unavailable`
    triton = tl = None

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "activate",
    "block_of",
    "ceil_div",
    "constant",
    "differentiate",
    "interpreted",
    "jit",
    "tl",
    "triton",
    "unavailable",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = ("identity", "relu", "relu6", "hard_swish", "silu")
MIN_CAPABILITY = (8, 0)  # needed for bfloat16


def unavailable() -> str | None:
    """Return why the kernels cannot run, on a GPU or in Triton's interpreter, or None."""
    if triton is None:
        return "Triton is not installed"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.version.hip is not None:
        return "the kernels are made for NVIDIA GPUs"
    if torch.cuda.get_device_capability() < MIN_CAPABILITY:
        return "the GPU is older than compute capability 8.0"
    return _failure()


@functools.cache
def _failure() -> str | None:
    """Return why no kernel compiles, such as a missing C compiler or a read-only disk."""
    try:
        _trial_kernel[(1,)](torch.zeros(1, device="cuda"))
    except Exception as error:  # from Triton, the compiler, the file system or the driver
        return f"Triton cannot compile its kernels: {first_line(error)}"
    return None


def block_of(length: int, least: int, most: int) -> int:
    """Largest power of two that covers ``length`` with a quarter to spare, else the tightest."""
    blocks = [2**n for n in range(least.bit_length() - 1, most.bit_length())]
    spare = {block: ceil_div(length, block) * block / length for block in blocks}
    fitting = [block for block in blocks if spare[block] <= 1.25]
    return max(fitting) if fitting else min(blocks, key=lambda block: (spare[block], -block))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter; Triton decides this at decoration."""
    return triton is not None and not isinstance(activate, triton.JITFunction)


def jit(*sizes: str) -> Callable[[Callable[..., Any]], Any]:
    """``triton.jit`` if Triton is installed; one compilation serves all values of ``sizes``."""
    if triton is None:
        return lambda kernel: kernel
    return triton.jit(do_not_specialize=list(sizes))


def constant(function: Callable[..., int]) -> Any:
    """Evaluate ``function`` at compile time when a kernel calls it."""
    return function if triton is None else triton.constexpr_function(function)


@jit()
@no_type_check
def _trial_kernel(x):
    tl.store(x, 1.0)


@jit()
@no_type_check
def activate(t, ACT: tl.constexpr):
    """Activate ``t``; NaN stays NaN."""
    if ACT == "relu":
        t = tl.maximum(t, 0.0, tl.PropagateNan.ALL)
    elif ACT == "relu6":
        t = _between(t, 0.0, 6.0)
    elif ACT == "hard_swish":
        t = t * _between(t * (1.0 / 6.0) + 0.5, 0.0, 1.0)
    elif ACT == "silu":
        t = t / (1.0 + tl.exp(-t))
    return t


@jit()
@no_type_check
def _between(t, least, most):
    t = tl.maximum(t, least, tl.PropagateNan.ALL)
    return tl.minimum(t, most, tl.PropagateNan.ALL)


@jit()
@no_type_check
def differentiate(g, t, ACT: tl.constexpr):
    """Gradient at ``t`` from the gradient at ``activate(t)``; PyTorch's subgradient at kinks."""
    if ACT == "relu":
        g = tl.where(t <= 0.0, 0.0, g)
    elif ACT == "relu6":
        g = tl.where((t <= 0.0) | (t >= 6.0), 0.0, g)
    elif ACT == "hard_swish":
        g = g * tl.where(t <= -3.0, 0.0, tl.where(t >= 3.0, 1.0, t * (1.0 / 3.0) + 0.5))
    elif ACT == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-t))
        g = g * (sigmoid * (1.0 + t * (1.0 - sigmoid)))
    return g
