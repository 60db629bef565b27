"""The depthwise convolution on NVIDIA GPUs: the fastest of several kernels, shape by shape.

Which of cuDNN's kernels, PyTorch's own and ours is the fastest depends on channels, size, kernel
and GPU, and no rule holds for all. So each is timed when a shape is first met, and the choice is
kept as long as the process lives. **Unmeasured** so far, as the kernels are.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep_zoo.ops import cpu

T = TypeVar("T")
Key = tuple[Any, ...]
Clock = Callable[[Callable[[], object]], float]
"""Seconds of one call."""

OWN = "PyTorch's"
TRIALS = 5

choices: dict[Key, str] = {}
"""The kernel that each shape uses, by name."""
fallbacks: Counter[str] = Counter()
"""How often our kernels could not be used, by reason."""


def forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """As :func:`dwsep_zoo.ops.depthwise_conv2d`."""
    own = partial(_aten_forward, x, weight, stride, padding)
    ways: dict[str, Callable[[], Tensor]] = {OWN: own}
    if _has_native_flag() and x.is_contiguous(memory_format=torch.channels_last):
        ways["native"] = partial(_native_forward, x, weight, stride, padding)
    if _ours(x, weight, stride, padding):
        ways["triton"] = partial(_triton_forward, x, weight, stride, padding)
    return fastest(("forward", *_shape(x, weight, stride, padding)), ways)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input and of the weight, those that ``mask`` asks for."""
    ways: dict[str, Callable[[], tuple[Tensor | None, Tensor | None]]] = {
        OWN: partial(_aten_backward, grad, x, weight, stride, padding, mask)
    }
    if _ours(x, weight, stride, padding):
        ways["triton"] = partial(_triton_backward, grad, x, weight, stride, padding, mask)
    return fastest(("backward", *mask, *_shape(x, weight, stride, padding)), ways)


def fastest(key: Key, ways: Mapping[str, Callable[[], T]], clock: Clock | None = None) -> T:
    """The result of the way that was the fastest when ``key`` was first met.

    While a CUDA graph is captured nothing can be timed, and with deterministic algorithms nothing
    may depend on a clock: a new key then goes PyTorch's own way, this time.
    """
    name = choices.get(key)
    if name is None and len(ways) == 1:
        name = OWN
    elif name is None and (torch.are_deterministic_algorithms_enabled() or _is_capturing()):
        return ways[OWN]()
    elif name is None:
        name = choices[key] = _race(ways, clock or _cuda_clock)
    return ways[name]()


def _race(ways: Mapping[str, Callable[[], object]], clock: Clock) -> str:
    for way in ways.values():
        way()  # compiles, and lets cuDNN choose
    times = {name: min(clock(way) for _ in range(TRIALS)) for name, way in ways.items()}
    return min(times, key=lambda name: times[name])


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _cuda_clock(way: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    way()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _ours(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether our kernels can do it; if not, that is counted."""
    from dwsep_zoo.ops import triton_depthwise

    reason = triton_depthwise.unavailable() or triton_depthwise.covered(x, weight, stride, padding)
    if reason:
        fallbacks[reason] += 1
    return not reason


def _shape(x: Tensor, weight: Tensor, stride: int, padding: int) -> Key:
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return (x.device, x.dtype, x.shape, channels_last, weight.shape, stride, padding)


def _aten_forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    return F.conv2d(x, weight.to(x.dtype), None, stride, padding, 1, x.shape[1])


def _native_forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    # PyTorch's own kernel reads and writes NCHW.
    with torch.backends.cudnn.flags(depthwise_kernel="native"):
        y = _aten_forward(x.contiguous(), weight, stride, padding)
    return y.contiguous(memory_format=torch.channels_last)


def _aten_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    grads = cpu.aten_backward(grad, x, weight.to(x.dtype), stride, (padding, padding), mask)
    return grads[0], None if grads[1] is None else grads[1].to(weight.dtype)


def _triton_forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    from dwsep_zoo.ops import triton_depthwise  # Triton is imported where there is a GPU only

    return triton_depthwise.forward(x, weight, stride, padding)


def _triton_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    from dwsep_zoo.ops import triton_depthwise

    grads = triton_depthwise.backward(grad, x, weight, stride, padding, mask)
    return grads.x, grads.weight


def _has_native_flag() -> bool:
    """torch 2.10 and later can be told not to take cuDNN's kernel."""
    return "depthwise_kernel" in inspect.signature(torch.backends.cudnn.flags).parameters
