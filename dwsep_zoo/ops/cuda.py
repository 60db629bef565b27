"""The depthwise convolution on NVIDIA GPUs: the fastest of several kernels, shape by shape.

The kernels of cuDNN, PyTorch and this project compete. The fastest one depends on channels, size,
kernel and GPU, and no rule covers all cases, so each is timed at the first call with a shape. Later
processes use the same choice (:mod:`dwsep_zoo.ops.kept`). In training, most depthwise convolutions
are fused with the norm before them, by another kernel (:mod:`dwsep_zoo.ops.norm`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dwsep_zoo.errors import first_line
from dwsep_zoo.ops import cpu
from dwsep_zoo.ops.fallback import fallbacks
from dwsep_zoo.ops.kept import kept

log = logging.getLogger("dwsep_zoo")

Key = tuple[Any, ...]
Way = Callable[..., Any]

OWN = "PyTorch's"
NATIVE = "native"
TRITON = "triton"
TRIALS = 3  # the shortest counts
CALLS = 10  # in a trial
LONGEST_WAIT = 0.1  # seconds
GPU_HZ = 2e9  # approximately the highest clock rate of a GPU


class Choice(NamedTuple):
    """The kernel for a shape.

    Attributes:
        way: name of the kernel.
        fallback: reason why our kernel did not compete, if so.
    """

    way: str
    fallback: str | None = None


choices: dict[Key, Choice] = {}
"""The choice for every shape so far."""


def forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Convolve, see :func:`dwsep_zoo.ops.depthwise_conv2d`."""
    shape = (x, weight, stride, padding)
    key = ("forward", *_key(*shape))
    choice = choices.get(key) or choose_way(key, FORWARD, shape, _left_out(*shape))
    return _run(choice, FORWARD, shape)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of input and weight, ``None`` where ``mask`` is false."""
    shape = (x, weight, stride, padding)
    key = ("backward", mask, *_key(*shape))
    arguments = (grad, *shape, mask)
    choice = choices.get(key) or choose_way(key, BACKWARD, arguments, _left_out(*shape))
    return _run(choice, BACKWARD, arguments)


def choose_way(
    key: Key, ways: Mapping[str, Way], arguments: tuple[Any, ...], left_out: Mapping[str, str]
) -> Choice:
    """Return the fastest way for a key; the first call with a key times all of them.

    What an earlier process chose is not timed again, unless a way was missing then or is now.
    Timing is impossible while a CUDA graph is captured, and deterministic algorithms must not
    depend on a clock: PyTorch's kernel is used then, for this call only.

    Args:
        key: the direction, then everything that the ways depend on.
        ways: the kernels by name.
        arguments: arguments of the ways.
        left_out: names of the ways that do not support these arguments, with the reason.
    """
    runs = {name: partial(ways[name], *arguments) for name in ways if name not in left_out}
    reason = left_out.get(TRITON)
    if len(runs) > 1:
        if torch.are_deterministic_algorithms_enabled():
            return Choice(OWN, f"{key[0]}: deterministic algorithms are on, so nothing is timed")
        earlier = kept().get(key)
        if earlier in runs and TRITON in runs:
            choices[key] = Choice(str(earlier))
            return choices[key]
        if _is_capturing():
            return Choice(OWN, f"{key[0]}: first met while a CUDA graph was captured")
        kept().announce()
        times, failed = _race(runs)
        way, reason = min(times, key=lambda name: times[name]), failed.get(TRITON, reason)
        if TRITON in times and not failed:
            kept().add(key, way)
    else:
        way = OWN
    choices[key] = Choice(way, reason and f"{key[0]}: {reason}")
    return choices[key]


def _run(choice: Choice, ways: Mapping[str, Way], arguments: tuple[Any, ...]) -> Any:
    if choice.fallback:
        fallbacks[choice.fallback] += 1
    return ways[choice.way](*arguments)


def _race(runs: Mapping[str, Callable[[], object]]) -> tuple[dict[str, float], dict[str, str]]:
    """Return the seconds per call of each kernel that runs, and the errors of the others."""
    times: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, run in runs.items():
        try:
            run()  # compiles, and cuDNN selects its algorithm
            times[name] = min(_seconds(run) for _ in range(TRIALS))
        except Exception as error:  # from Triton, a C compiler or a driver
            if name == OWN:
                raise
            failed[name] = first_line(error)
            _warn(name, failed[name])
    return times, failed


@functools.cache  # warn once, not for every shape
def _warn(name: str, reason: str) -> None:
    log.warning("depthwise convolutions do without the %s kernel here: %s", name, reason)


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _seconds(run: Callable[[], object]) -> float:
    """Return the GPU's time for a call, without the host's overhead.

    The kernels of a small layer finish before the host launches the next ones. A CUDA graph has no
    launches, so only the kernels' time counts: the GPU waits until all calls are queued.
    """
    begin = perf_counter()
    run()
    wait = min(2 * CALLS * (perf_counter() - begin), LONGEST_WAIT)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(wait * GPU_HZ))
    start.record()
    for _ in range(CALLS):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / CALLS


def _left_out(x: Tensor, weight: Tensor, stride: int, padding: int) -> dict[str, str]:
    """Return the ways that do not support these arguments, with the reason."""
    from dwsep_zoo.ops import triton_depthwise

    left_out = {}
    if reason := triton_depthwise.covered(x, weight, stride, padding):
        left_out[TRITON] = reason
    if not x.is_contiguous(memory_format=torch.channels_last):
        left_out[NATIVE] = "it is what PyTorch chooses from for NCHW"
    return left_out


def _key(x: Tensor, weight: Tensor, stride: int, padding: int) -> Key:
    """Return everything that the ways and :func:`_left_out` depend on."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return (
        *(x.device, x.dtype, x.shape, channels_last),
        *(weight.device, weight.dtype, weight.shape, stride, padding),
    )


def _native_forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    # Without cuDNN PyTorch uses its own kernel, which reads and writes NCHW.
    with torch.backends.cudnn.flags(enabled=False):
        y = cpu.aten_forward(x.contiguous(), weight, stride, padding)
    return y.contiguous(memory_format=torch.channels_last)


def _aten_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    grads = cpu.aten_backward(grad, x, weight.to(x.dtype), stride, (padding, padding), mask)
    return grads[0], None if grads[1] is None else grads[1].to(weight.dtype)


def _triton_forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    from dwsep_zoo.ops import triton_depthwise  # import Triton only if there is a GPU

    return triton_depthwise.forward(x, weight, stride, padding)


def _triton_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    from dwsep_zoo.ops import triton_depthwise

    grads = triton_depthwise.backward(grad, x, weight, stride, padding, mask)
    return grads.x, grads.weight


FORWARD: Mapping[str, Way] = {
    OWN: cpu.aten_forward,
    NATIVE: _native_forward,
    TRITON: _triton_forward,
}
BACKWARD: Mapping[str, Way] = {OWN: _aten_backward, TRITON: _triton_backward}
