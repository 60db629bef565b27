"""Whether this machine and this PyTorch are as the project takes them to be: ``dwsep doctor``."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor

from dwsep_zoo.analysis.latency import (
    Clock,
    LatencyComparison,
    compare_turns,
    device_name,
    take_turns,
    wall_clock,
)
from dwsep_zoo.analysis.runtimes import available_runtimes
from dwsep_zoo.ops import batch_norm_act, batch_norm_act_depthwise, cpu, native
from dwsep_zoo.ops.norm import ACTS

NEEDED = 1.2  # a way around that gains less is not worth its code
SHAPE = (16, 128, 28, 28)
EPS = 1e-5


@dataclass(frozen=True)
class Detour:
    """One of the ways around a slow kernel, against PyTorch's own.

    Attributes:
        name: of the gradient, kernel, stride and type.
        own: PyTorch's own way.
        ours: the way around it.
        exact: the same in float64.
    """

    name: str
    own: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    exact: Tensor


@dataclass(frozen=True)
class Finding:
    """What was found of a detour.

    Attributes:
        gain: time of PyTorch's own way over that of ours, with its interval.
        error: largest difference of ours from the exact gradient, relative to the largest value.
        own_error: the same of PyTorch's own way.
    """

    name: str
    gain: LatencyComparison
    error: float
    own_error: float

    @property
    def verdict(self) -> str:
        if self.error > 4 * self.own_error + 1e-5:
            return "WRONG: please report this"
        if self.gain.low > NEEDED:
            return "needed"
        return "no longer needed here" if self.gain.high < NEEDED else "not clear; try when idle"


def detours() -> list[Detour]:
    """Those that are taken here, on a typical layer of 128 channels.

    First what our own kernels do, if they could be compiled, then the ways around without them.
    """
    ours = [
        _both_grads(3, 1, torch.bfloat16),
        _both_grads(3, 2, torch.bfloat16),
        _both_grads(5, 1, torch.bfloat16),
        _both_grads(3, 1, torch.float32),
        _norm("relu", torch.bfloat16),
        _norm("silu", torch.bfloat16),
        _norm("relu", torch.float32),
        _norm("relu", torch.bfloat16, convolved=True),
        _norm("relu", torch.float32, convolved=True),
    ]
    return [
        *(ours if native.native().library else []),
        _input_grad(3, torch.bfloat16),
        _input_grad(5, torch.bfloat16),
        _weight_grad(3, torch.bfloat16, pixels=2),
        _weight_grad(5, torch.float32),
        _weight_grad(5, torch.bfloat16),
        _weight_grad(7, torch.bfloat16),
    ]


def examine(detour: Detour, clock: Clock = wall_clock, min_run_time: float = 0.2) -> Finding:
    """Time both ways in turns, and hold both against the exact gradient."""
    largest = detour.exact.abs().max()

    def error(way: Callable[[], Tensor]) -> float:
        return float((way().double() - detour.exact).abs().max() / largest)

    with torch.no_grad():
        ours, own = take_turns([detour.ours, detour.own], clock, min_run_time)
        return Finding(detour.name, compare_turns(ours, own), error(detour.ours), error(detour.own))


def doctor() -> list[RenderableType]:
    """Tables about the machine, the runtimes and the detours, for a terminal."""
    machine = Table(title="this machine", show_header=False)
    gpu = torch.cuda.is_available()
    for key, value in {
        "processor": f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads",
        "bfloat16": _bf16(),
        "norms and depthwise": f"kernels are {native.status()}",
        "GPU": device_name(torch.device("cuda")) if gpu else "none that PyTorch can use",
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
    }.items():
        machine.add_row(key, value)
    for runtime, line in available_runtimes().items():
        machine.add_row(f"runtime {runtime}", "ready" if line is None else f"absent; {line}")
    found = Table(
        title="training on the CPU: PyTorch's own way against ours",
        caption="gain: PyTorch's time over ours, median [99 % interval]; of a layer of 128 "
        "channels, 28 x 28 pixels unless said, 16 images",
        caption_justify="left",
    )
    found.add_column("of a layer")
    found.add_column("gain", justify="right")
    found.add_column("ours is")
    for detour in detours():
        finding = examine(detour)
        gain = finding.gain
        found.add_row(
            finding.name,
            rf"{gain.ratio:.1f}x \[{gain.low:.1f}, {gain.high:.1f}]",
            finding.verdict,
        )
    return [machine, found]


def _bf16() -> str:
    if torch.cpu._is_amx_tile_supported():
        return "fast (AMX)"
    return "fast (AVX-512)" if torch.cpu._is_avx512_bf16_supported() else "slower than float32 here"


def _operands(
    kernel: int, stride: int, dtype: torch.dtype, pixels: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(kernel)
    images, chans, *_ = SHAPE
    pixels = pixels or SHAPE[2]
    size = pixels // stride

    def draw(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator).to(dtype)
        return values.to(memory_format=torch.channels_last)

    return (
        draw(images, chans, size, size),
        draw(images, chans, pixels, pixels),
        draw(chans, 1, kernel, kernel),
    )


def _input_grad(kernel: int, dtype: torch.dtype) -> Detour:
    grad, x, weight = _operands(kernel, 2, dtype)
    pad = kernel // 2
    own = partial(cpu.aten_backward, stride=2, padding=(pad, pad), mask=(True, False))
    return Detour(
        f"input gradient, {kernel} x {kernel}, stride 2, {_short(dtype)}",
        lambda: own(grad, x, weight)[0],
        lambda: cpu.input_grad(grad, x, weight, 2, pad),
        own(grad.double(), x.double(), weight.double())[0],
    )


def _weight_grad(kernel: int, dtype: torch.dtype, pixels: int | None = None) -> Detour:
    grad, x, weight = _operands(kernel, 1, dtype, pixels)
    pad = kernel // 2
    own = partial(cpu.aten_backward, stride=1, padding=(pad, pad), mask=(False, True))
    return Detour(
        f"weight gradient, {kernel} x {kernel}, stride 1, {_short(dtype)}"
        + (f", {pixels} x {pixels} pixels" if pixels else ""),
        lambda: own(grad, x, weight)[1],
        lambda: cpu.weight_grad(grad, x, weight, 1, pad),
        own(grad.double(), x.double(), weight.double())[1],
    )


def _both_grads(kernel: int, stride: int, dtype: torch.dtype) -> Detour:
    grad, x, weight = _operands(kernel, stride, dtype)
    pad, both = kernel // 2, (True, True)
    own = partial(cpu.aten_backward, stride=stride, padding=(pad, pad), mask=both)

    def ours() -> Tensor:
        grad_x, _ = cpu.backward(grad, x, weight, stride, pad, both)
        assert grad_x is not None
        return grad_x

    return Detour(
        f"depthwise gradients, {kernel} x {kernel}, stride {stride}, {_short(dtype)}",
        lambda: own(grad, x, weight)[0],
        ours,
        own(grad.double(), x.double(), weight.double())[0],
    )


def _norm(act: str, dtype: torch.dtype, *, convolved: bool = False) -> Detour:
    """Forward and backward, with a depthwise convolution behind it or without."""
    grad, x, filters = _operands(3, 1, dtype)
    chans = x.shape[1]
    inputs = [x, torch.ones(chans), torch.zeros(chans), *([filters.float()] if convolved else [])]

    def own(x: Tensor, weight: Tensor, bias: Tensor, *filters: Tensor) -> Tensor:
        y = ACTS[act](F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS))
        return F.conv2d(y, filters[0].to(y.dtype), None, 1, 1, 1, chans) if filters else y

    def ours(x: Tensor, weight: Tensor, bias: Tensor, *filters: Tensor) -> Tensor:
        if filters:
            return batch_norm_act_depthwise(x, weight, bias, EPS, act, filters[0], 1, 1)[0]
        return batch_norm_act(x, weight, bias, EPS, act)[0]

    def gradient(way: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in inputs]
            return torch.autograd.grad(way(*leaves), leaves, grad.to(inputs[0].dtype))[0]

    layers = f"norm, {act}, depthwise 3 x 3" if convolved else f"norm and {act}"
    return Detour(
        f"{layers}, {_short(dtype)}",
        lambda: gradient(own, inputs),
        lambda: gradient(ours, inputs),
        gradient(own, [t.double() for t in inputs]),
    )


def _short(dtype: torch.dtype) -> str:
    return "bf16" if dtype is torch.bfloat16 else "fp32"
