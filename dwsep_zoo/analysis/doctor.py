"""The gain of the detours around PyTorch's slow CPU kernels on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep_zoo.analysis.device import has_fast_bfloat16
from dwsep_zoo.analysis.latency import (
    COMPARE_TURNS,
    LatencyComparison,
    Timer,
    compare_turns,
    take_turns,
    timer_for,
)
from dwsep_zoo.ops import Depthwise, Fusion, Norm, cpu, fused, native
from dwsep_zoo.ops.norm import ACTS

NEEDED = 1.2  # a detour that gains less is not worth its code
SHAPE = (16, 128, 28, 28)  # images, channels, pixels of a typical layer
EPS = 1e-5
Way = Callable[[], Tensor]


@dataclass(frozen=True)
class Detour:
    """Two ways to one result: PyTorch's own and ours; ``exact`` is the result in float64."""

    name: str
    own: Way
    ours: Way
    exact: Tensor


@dataclass(frozen=True)
class Finding:
    """A detour, measured.

    Attributes:
        gain: time of PyTorch's way over that of ours, with its interval.
        error: largest difference of ours from the exact result, relative to the largest value.
        own_error: the same for PyTorch's way.
    """

    name: str
    gain: LatencyComparison
    error: float
    own_error: float

    @property
    def verdict(self) -> str:
        if self.error > 4 * self.own_error + 1e-5:
            return "WRONG: please report this"
        low, high = self.gain.low, self.gain.high
        if low is not None and low > NEEDED:
            return "needed"
        if high is not None and high < NEEDED:
            return "no longer needed here"
        return "not clear; try when idle"


def detours() -> list[Detour]:
    """The detours taken here: those of our own kernels if they compile, then those without.

    Those of bfloat16 are left out where training does not use it by default.
    """
    fp32, bf16 = torch.float32, torch.bfloat16
    types = [fp32, bf16] if has_fast_bfloat16("cpu") else [fp32]
    ours, without = [], []
    for dtype in types:
        ours += [
            _gradient("depthwise", 3, 1, dtype),
            _gradient("depthwise", 3, 2, dtype),
            _gradient("depthwise", 5, 1, dtype),
            _norm("relu", dtype),
            _norm("silu", dtype),
            _norm("relu", dtype, convolved=True),
        ]
        without.append(_gradient("weight", 5, 1, dtype))
    if bf16 in types:
        without += [
            _gradient("weight", 7, 1, bf16),
            _gradient("weight", 3, 1, bf16, pixels=2),
            _gradient("input", 3, 2, bf16),
            _gradient("input", 5, 2, bf16),
        ]
    return [*(ours if native.native().library else []), *without]


def examine(detour: Detour, timer: Timer | None = None, min_run_time: float = 0.2) -> Finding:
    """Time both ways in turns, and compare both with the exact result."""
    largest = detour.exact.abs().max()

    def error(way: Way) -> float:
        return float((way().double() - detour.exact).abs().max() / largest)

    with torch.no_grad():
        timer = timer or timer_for(detour.exact.device)
        ours, own = take_turns([detour.ours, detour.own], timer, min_run_time, COMPARE_TURNS)
        return Finding(detour.name, compare_turns(ours, own), error(detour.ours), error(detour.own))


def _operands(kernel: int, stride: int, dtype: torch.dtype, pixels: int) -> list[Tensor]:
    """Gradient of the output, input and filters of a depthwise convolution."""
    generator = torch.Generator().manual_seed(kernel)
    images, chans, *_ = SHAPE
    out = pixels // stride
    shapes = (images, chans, out, out), (images, chans, pixels, pixels), (chans, 1, kernel, kernel)
    return [
        torch.randn(*shape, generator=generator).to(dtype, memory_format=torch.channels_last)
        for shape in shapes
    ]


def _detour(
    name: str, own: Callable[..., Tensor], ours: Callable[..., Tensor], tensors: Sequence[Tensor]
) -> Detour:
    """Both ways with the same tensors; the exact result is PyTorch's in float64."""
    exact = own(*(tensor.double() for tensor in tensors))
    return Detour(name, partial(own, *tensors), partial(ours, *tensors), exact)


def _gradient(
    kind: str, kernel: int, stride: int, dtype: torch.dtype, pixels: int | None = None
) -> Detour:
    """The gradient of a depthwise convolution by ``kind``: input, weight or (depthwise) both."""
    pad, index = kernel // 2, 1 if kind == "weight" else 0
    mask = (kind != "weight", kind != "input")

    def own(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return cpu.aten_backward(grad, x, weight, stride, (pad, pad), mask)[index]

    def ours(grad: Tensor, x: Tensor, weight: Tensor) -> Any:
        if kind == "depthwise":
            return cpu.backward(grad, x, weight, stride, pad, mask)[0]
        way = cpu.weight_grad if kind == "weight" else cpu.input_grad
        return way(grad, x, weight, stride, pad)

    size = f", {pixels} x {pixels} pixels" if pixels else ""
    return _detour(
        f"{kind} gradient{'s' if kind == 'depthwise' else ''}, {kernel} x {kernel}, "
        f"stride {stride}, {_short(dtype)}{size}",
        own,
        ours,
        _operands(kernel, stride, dtype, pixels or SHAPE[2]),
    )


def _norm(act: str, dtype: torch.dtype, *, convolved: bool = False) -> Detour:
    """Norm and activation, forward and backward, with a depthwise convolution behind or without."""
    grad, x, filters = _operands(3, 1, dtype, SHAPE[2])
    chans = x.shape[1]

    def own(x: Tensor, weight: Tensor, bias: Tensor, *filters: Tensor) -> Tensor:
        y = ACTS[act](F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS))
        return F.conv2d(y, filters[0].to(y.dtype), None, 1, 1, 1, chans) if filters else y

    def ours(x: Tensor, weight: Tensor, bias: Tensor, *filters: Tensor) -> Tensor:
        conv = Depthwise(filters[0], 1, 1) if filters else None
        return fused(x, Fusion(Norm(weight, bias, EPS, act), conv))[0]

    def gradient(way: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in inputs]
            return torch.autograd.grad(way(*leaves), leaves, grad.to(inputs[0].dtype))[0]

    layers = f"norm, {act}, depthwise 3 x 3" if convolved else f"norm and {act}"
    return _detour(
        f"{layers}, {_short(dtype)}",
        partial(gradient, own),
        partial(gradient, ours),
        [x, torch.ones(chans), torch.zeros(chans), *([filters.float()] if convolved else [])],
    )


def _short(dtype: torch.dtype) -> str:
    return "bf16" if dtype is torch.bfloat16 else "fp32"
