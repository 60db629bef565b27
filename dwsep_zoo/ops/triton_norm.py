"""Batch normalisation fused with the layers after it, as Triton kernels for NVIDIA GPUs.

Memory limits all of them, so the number of passes over a tensor counts. In channels_last:

* The statistics are one pass. Their sums are relative to the first pixel, so a large mean costs no
  digits.
* Norm and activation are one pass, or none if a depthwise convolution follows, which applies them
  as it reads (``triton_depthwise``).
* The backward pass has two passes. The first one, the sums, is part of the convolution's own pass
  if there is a convolution.

Sums are float32, in a fixed order and without atomics: equal runs give equal bits.
"""

# ruff: noqa: RUF005 - Triton has no (*tuple, value)

from __future__ import annotations

import math
from typing import no_type_check

import torch
from torch import Tensor

from dwsep_zoo.ops import triton_depthwise
from dwsep_zoo.ops.fusion import Fusion, Norm
from dwsep_zoo.ops.triton_common import (
    DTYPES,
    activate,
    block_of,
    ceil_div,
    differentiate,
    interpreted,
    jit,
    tl,
    unavailable,
)
from dwsep_zoo.ops.triton_depthwise import Gradients, Prologue

VALUES = 32  # per thread
VECTOR_VALUES, UNROLL = 8, 8  # in sums: values per thread, and their repetitions
WARPS = 4
PROGRAMS = 1024  # per sum
KERNEL_SIZES = (3, 5)  # fused with a norm; larger kernels leave no registers for it


def covers(x: Tensor) -> bool:
    """Whether the functions below support this input."""
    return (
        unavailable() is None
        and (x.is_cuda or interpreted())
        and x.dim() == 4
        and x.dtype in DTYPES
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def covers_fusion(x: Tensor, fusion: Fusion) -> bool:
    """Whether :func:`forward` and :func:`backward` support these arguments."""
    norm, conv, norm2, _ = fusion
    if norm.weight is None or norm2.weight is not None or norm.synced:
        return False
    if conv is None:
        return covers(x)
    return conv.taps.shape[-1] in KERNEL_SIZES and triton_depthwise.covered(x, *conv) is None


def forward(x: Tensor, fusion: Fusion) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Normalise, activate and, if there is a convolution, convolve depthwise.

    See ``_Kernels`` in :mod:`.norm`. The values between norm and convolution are not rounded to the
    type of ``x``.
    """
    norm, conv, *_ = fusion
    stats = _statistics(x, norm)
    if conv is not None:
        return triton_depthwise.forward(x, *conv, prologue(stats, norm.act)), [stats], []
    y = torch.empty_like(x)
    _call_elementwise(x, x, stats, None, y, norm.act, BACKWARD=False, SCALED=False)
    return y, [stats], []


def backward(grad: Tensor, x: Tensor, fusion: Fusion, stats: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of ``x`` and of the fusion's tensors; see ``_Kernels``."""
    norm, conv, *_ = fusion
    if conv is not None:
        through = triton_depthwise.backward(
            grad.to(x.dtype), x, *conv, prologue=prologue(stats, norm.act)
        )
        coefficients = coefficients_of(through, x, stats, norm.eps)
        assert through.x is not None
        assert through.weight is not None
        # The gradient through the convolution already includes the scale and is not used again.
        _call_elementwise(
            through.x, x, stats, coefficients, through.x, "identity", BACKWARD=True, SCALED=True
        )
        return through.x, coefficients[0], coefficients[1], through.weight
    grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
    partial = _sums(grad, x, stats, norm.act, BACKWARD=True)
    rows = x.numel() // x.shape[1]
    coefficients = _coefficients(partial[:, 0], partial[:, 1], stats, rows, norm.eps, centered=True)
    grad_x = torch.empty_like(x)
    _call_elementwise(grad, x, stats, coefficients, grad_x, norm.act, BACKWARD=True, SCALED=False)
    return grad_x, coefficients[0], coefficients[1]


def update_running(
    stats: Tensor, mean: Tensor, var: Tensor, batches: Tensor | None, momentum: float, count: int
) -> None:
    """Move running statistics towards those of a batch, as ``nn.BatchNorm2d`` does.

    Args:
        stats: the statistics from :func:`forward`.
        mean: running mean, changed in place.
        var: running variance, unbiased, changed in place.
        batches: number of batches so far, changed in place.
        momentum: weight of the new statistics.
        count: number of values per channel in the batch.
    """
    chans = stats.shape[1]
    with torch.cuda.device_of(stats):
        _update_kernel[(ceil_div(chans, FEW_CHANS),)](
            stats,
            mean,
            var,
            batches,
            chans,
            momentum,
            momentum * count / (count - 1),
            CHANS=FEW_CHANS,
            num_warps=1,
        )


def _statistics(x: Tensor, norm: Norm) -> Tensor:
    """Return ``(4, C)`` float32: mean, biased variance, and the resulting scale and shift."""
    partial = sums(x)
    chans = x.shape[1]
    stats = x.new_empty((4, chans), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _statistics_kernel[(ceil_div(chans, FEW_CHANS),)](
            partial[:, 0],
            partial[:, 1],
            x,
            norm.weight,
            norm.bias,
            stats,
            len(partial),
            2 * chans,
            chans,
            chans / x.numel(),
            norm.eps,
            PROGRAMS=AT_ONCE,
            CHANS=FEW_CHANS,
            num_warps=WARPS,
        )
    return stats


def sums(x: Tensor) -> Tensor:
    """Return ``(parts, 2, C)``: partial sums of x minus its first pixel, and of its square."""
    return _sums(x, x, None, "identity", BACKWARD=False)


def coefficients_of(through: Gradients, x: Tensor, stats: Tensor, eps: float) -> Tensor:
    """Return ``_coefficients`` from the gradients ``through`` the convolution after the norm."""
    assert through.scale is not None
    assert through.shift is not None
    parts = (through.scale[None], through.shift[None])
    return _coefficients(*parts, stats, x.numel() // x.shape[1], eps, centered=False)


def _sums(grad: Tensor, x: Tensor, stats: Tensor | None, act: str, *, BACKWARD: bool) -> Tensor:
    """Return ``(programs, 2, C)``: partial results of the kernel's two sums."""
    rows, chans, vector, block, lines = _sizes(x, VECTOR_VALUES)
    blocks, unroll = ceil_div(chans, block), UNROLL // 2 if BACKWARD else UNROLL
    programs = min(ceil_div(PROGRAMS, blocks), ceil_div(rows, lines * unroll))
    partial = x.new_empty((programs, 2, chans), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _sums_kernel[(programs * blocks,)](
            grad,
            x,
            stats,
            partial,
            rows,
            chans // vector,
            ACT=act,
            BACKWARD=BACKWARD,
            UNROLL=unroll,
            VECTOR=vector,
            ROWS=lines,
            CHANS=block,
            num_warps=WARPS,
        )
    return partial


def _coefficients(
    first: Tensor, second: Tensor, stats: Tensor, rows: int, eps: float, *, centered: bool
) -> Tensor:
    """Return ``(4, C)``: gradients of weight and bias; slope and constant for ``x``'s gradient.

    ``first`` and ``second``: partial sums of g (x - mean), or of g x if not ``centered``, and of g,
    the gradient before the activation.
    """
    chans = stats.shape[1]
    coefficients = torch.empty_like(stats)
    with torch.cuda.device_of(stats):
        _coefficients_kernel[(ceil_div(chans, FEW_CHANS),)](
            first,
            second,
            stats,
            coefficients,
            len(first),
            first.stride(0),
            chans,
            1 / rows,
            eps,
            CENTERED=centered,
            PROGRAMS=AT_ONCE if len(first) > 1 else 1,
            CHANS=FEW_CHANS,
            num_warps=WARPS if len(first) > 1 else 1,
        )
    return coefficients


def _call_elementwise(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    coefficients: Tensor | None,
    out: Tensor,
    act: str,
    *,
    BACKWARD: bool,
    SCALED: bool,
) -> None:
    rows, chans, vector, block, lines = _sizes(x, VALUES)
    with torch.cuda.device_of(x):
        _elementwise_kernel[(ceil_div(rows, lines) * ceil_div(chans, block),)](
            grad,
            x,
            stats,
            coefficients,
            out,
            rows,
            chans // vector,
            ACT=act,
            BACKWARD=BACKWARD,
            SCALED=SCALED,
            VECTOR=vector,
            ROWS=lines,
            CHANS=block,
            num_warps=WARPS,
        )


def _sizes(x: Tensor, values: int) -> tuple[int, int, int, int, int]:
    """Return pixels, channels, a divisor of them, and channels and pixels per program."""
    chans = x.shape[1]
    block = block_of(chans, least=16, most=128)
    return x.numel() // chans, chans, math.gcd(chans, 16), block, 32 * WARPS * values // block


def prologue(stats: Tensor, act: str) -> Prologue:
    """Return norm and activation as the prologue of a convolution."""
    return Prologue(stats[2], stats[3], act)


@jit("rows", "chan_vectors")
@no_type_check
def _sums_kernel(
    grad,
    x,
    stats,
    partial,
    rows,
    chan_vectors,
    ACT: tl.constexpr,
    BACKWARD: tl.constexpr,
    UNROLL: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    CHANS: tl.constexpr,
):
    """Sum (x - first pixel) and its square; BACKWARD: g (x - mean) and g."""
    chans = chan_vectors * VECTOR  # so that the compiler knows a divisor, and loads vectors
    blocks = (chans + CHANS - 1) // CHANS
    program = tl.program_id(0) // blocks
    programs = tl.num_programs(0) // blocks
    c_line = tl.program_id(0) % blocks * CHANS + tl.arange(0, CHANS)
    c_inside = c_line < chans
    c = c_line[None, :]
    if BACKWARD:
        center = tl.load(stats + c_line, c_inside, 0.0)[None, :]
        a = tl.load(stats + 2 * chans + c_line, c_inside, 0.0)[None, :]
        b = tl.load(stats + 3 * chans + c_line, c_inside, 0.0)[None, :]
    else:
        center = tl.load(x + c_line, c_inside, 0.0).to(tl.float32)[None, :]
    first = tl.full((ROWS, CHANS), 0, tl.float32)
    second = tl.full((ROWS, CHANS), 0, tl.float32)
    for start in range(program * ROWS * UNROLL, rows, programs * ROWS * UNROLL):
        values = ()
        grads = ()
        for k in tl.static_range(UNROLL):  # all loads are issued before the first use
            row = (start + k * ROWS + tl.arange(0, ROWS))[:, None]
            at = row.to(tl.int64) * chans + c
            ok = (row < rows) & c_inside[None, :]
            values = values + (tl.load(x + at, ok, 0.0),)
            if BACKWARD:
                grads = grads + (tl.load(grad + at, ok, 0.0),)
        for k in tl.static_range(UNROLL):
            value = values[k].to(tl.float32)
            if BACKWARD:
                g = differentiate(grads[k].to(tl.float32), value * a + b, ACT)
                first += g * (value - center)
                second += g
            else:
                row = (start + k * ROWS + tl.arange(0, ROWS))[:, None]
                value = tl.where((row < rows) & c_inside[None, :], value - center, 0.0)
                first += value
                second += value * value
    partial += program * 2 * chans + c_line
    tl.store(partial, tl.sum(first, 0), c_inside)
    tl.store(partial + chans, tl.sum(second, 0), c_inside)


@jit("rows", "chan_vectors")
@no_type_check
def _elementwise_kernel(
    grad,
    x,
    stats,
    coefficients,
    out,
    rows,
    chan_vectors,
    ACT: tl.constexpr,
    BACKWARD: tl.constexpr,
    SCALED: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    CHANS: tl.constexpr,
):
    """Norm and activation, or the gradient of x. SCALED: grad already includes the scale."""
    chans = chan_vectors * VECTOR
    blocks = (chans + CHANS - 1) // CHANS
    c_line = tl.program_id(0) % blocks * CHANS + tl.arange(0, CHANS)
    c_inside = c_line < chans
    row = (tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS))[:, None]
    ok = (row < rows) & c_inside[None, :]
    at = row.to(tl.int64) * chans + c_line[None, :]
    a = tl.load(stats + 2 * chans + c_line, c_inside, 0.0)[None, :]
    b = tl.load(stats + 3 * chans + c_line, c_inside, 0.0)[None, :]
    value = tl.load(x + at, ok, 0.0).to(tl.float32)
    if BACKWARD:
        by_x = tl.load(coefficients + 2 * chans + c_line, c_inside, 0.0)[None, :]
        constant = tl.load(coefficients + 3 * chans + c_line, c_inside, 0.0)[None, :]
        g = tl.load(grad + at, ok, 0.0).to(tl.float32)
        if not SCALED:
            g = differentiate(g, value * a + b, ACT) * a
        value = g + (value * by_x + constant)
    else:
        value = activate(value * a + b, ACT)
    tl.store(out + at, value.to(out.dtype.element_ty), ok)


AT_ONCE, FEW_CHANS = 128, 16  # partial sums, and channels, at a time


@jit()
@no_type_check
def add_up(parts, programs, stride, chans, c, PROGRAMS: tl.constexpr, CHANS: tl.constexpr):
    """Sum the partial results of all programs."""
    total = tl.full((PROGRAMS, CHANS), 0, tl.float32)
    for start in range(0, programs, PROGRAMS):
        program = (start + tl.arange(0, PROGRAMS))[:, None]
        ok = (program < programs) & (c < chans)[None, :]
        total += tl.load(parts + program * stride + c[None, :], ok, 0.0)
    return tl.sum(total, 0)


@jit("programs", "stride", "chans")
@no_type_check
def _statistics_kernel(
    firsts,
    seconds,
    x,
    weight,
    bias,
    stats,
    programs,
    stride,
    chans,
    share,
    eps,
    PROGRAMS: tl.constexpr,
    CHANS: tl.constexpr,
):
    c = tl.program_id(0) * CHANS + tl.arange(0, CHANS)
    ok = c < chans
    first = add_up(firsts, programs, stride, chans, c, PROGRAMS, CHANS)
    second = add_up(seconds, programs, stride, chans, c, PROGRAMS, CHANS)
    offset = first * share
    mean = tl.load(x + c, ok, 0.0).to(tl.float32) + offset
    var = tl.maximum(second * share - offset * offset, 0.0, tl.PropagateNan.ALL)
    scale = tl.load(weight + c, ok, 0.0) * tl.rsqrt(var + eps)
    tl.store(stats + c, mean, ok)
    tl.store(stats + chans + c, var, ok)
    tl.store(stats + 2 * chans + c, scale, ok)
    tl.store(stats + 3 * chans + c, tl.load(bias + c, ok, 0.0) - mean * scale, ok)


@jit("programs", "stride", "chans")
@no_type_check
def _coefficients_kernel(
    firsts,
    seconds,
    stats,
    coefficients,
    programs,
    stride,
    chans,
    share,
    eps,
    CENTERED: tl.constexpr,
    PROGRAMS: tl.constexpr,
    CHANS: tl.constexpr,
):
    c = tl.program_id(0) * CHANS + tl.arange(0, CHANS)
    ok = c < chans
    first = add_up(firsts, programs, stride, chans, c, PROGRAMS, CHANS)
    second = add_up(seconds, programs, stride, chans, c, PROGRAMS, CHANS)
    mean = tl.load(stats + c, ok, 0.0)
    per_std = tl.rsqrt(tl.load(stats + chans + c, ok, 0.0) + eps)
    scale = tl.load(stats + 2 * chans + c, ok, 0.0)
    if not CENTERED:
        first = first - mean * second
    grad_weight = first * per_std
    by_x = -scale * per_std * grad_weight * share
    tl.store(coefficients + c, grad_weight, ok)
    tl.store(coefficients + chans + c, second, ok)
    tl.store(coefficients + 2 * chans + c, by_x, ok)
    tl.store(coefficients + 3 * chans + c, -scale * second * share - by_x * mean, ok)


@jit("chans")
@no_type_check
def _update_kernel(
    stats, running_mean, running_var, tracked, chans, momentum, of_var, CHANS: tl.constexpr
):
    c = tl.program_id(0) * CHANS + tl.arange(0, CHANS)
    ok = c < chans
    old = tl.load(running_mean + c, ok, 0.0)
    tl.store(running_mean + c, old + momentum * (tl.load(stats + c, ok, 0.0) - old), ok)
    old = tl.load(running_var + c, ok, 0.0) * (1.0 - momentum)
    tl.store(running_var + c, old + of_var * tl.load(stats + chans + c, ok, 0.0), ok)
    if tracked is not None and tl.program_id(0) == 0:
        tl.store(tracked, tl.load(tracked) + 1)
