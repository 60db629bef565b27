"""An expansion, its norm, activation and depthwise convolution on NVIDIA GPUs, with fewer passes.

The middle of an inverted residual is several times as wide as its ends, and its time depends on how
often the wide tensor passes through memory. Let X be the narrow input (pixels x channels), W the
weight of the expansion and E = X W' its output. Batch normalisation needs E's mean and variance,
and these follow from the narrow side:

    mean(E) = W mean(X),    var(E) = diag(W cov(X) W').

In the backward pass, the gradient of E is G, the gradient for constant scale and shift, plus
E k2 + k1, with numbers k1 and k2 for each channel. As E = X W', this sum need not be computed:

    dX = G W + X (W' diag(k2) W) + k1' W,
    dW = G' X + diag(k2) W (X' X) + k1 (sum of X)'.

The terms in brackets have the size of the narrow side. The forward pass writes and reads the wide
tensor once, instead of one write and three reads; the backward pass saves two of three of each. The
function is the same up to rounding: the statistics are those of E before its rounding. The variance
is a difference, which loses digits if the mean is much larger than the deviation: 0.2 % of it at 30
times, 2 % at 100 times. Expansions follow a norm, where it is not.

Float32 stays layer by layer: cuDNN's convolutions may round their factors there, and matrix
products may not, so they would be slower.
"""

from __future__ import annotations

from typing import no_type_check

import torch
from torch import Tensor

from dwsep_zoo.ops import triton_depthwise, triton_norm
from dwsep_zoo.ops.fusion import Fusion
from dwsep_zoo.ops.triton_common import ceil_div, jit, tl
from dwsep_zoo.ops.triton_norm import add_up

DTYPES = (torch.bfloat16, torch.float16)
MIN_RATIO = 3  # wide over narrow side; below, there is nothing to gain
MAX_CHANS = 512  # on the narrow side; products of this size squared are extra work
ROWS, PART = 16, 32  # part of a small matrix that a program computes at a time


def covers_fusion(x: Tensor, fusion: Fusion) -> bool:
    """Whether the functions below support these arguments and are faster."""
    norm, conv, norm2, expand = fusion
    if norm.weight is None or conv is None or norm2.weight is not None or expand is None:
        return False
    wide, narrow = expand.shape[:2]
    shape = torch.Size((x.shape[0], wide, *x.shape[2:]))
    return (
        not norm.synced
        and x.dtype in DTYPES
        and triton_norm.covers(x)
        and wide >= MIN_RATIO * narrow
        and narrow <= MAX_CHANS
        and conv.taps.device == x.device
        and conv.taps.shape[-1] in triton_norm.KERNEL_SIZES
        and triton_depthwise.covered_sizes(shape, *conv) is None
    )


def forward(x: Tensor, fusion: Fusion) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Compute the four layers; see ``_Kernels`` in :mod:`.norm`.

    Kept for ``backward``: the expansion's output, X' X and the sums of X, both float32.
    """
    norm, conv, _, expand = fusion
    assert conv is not None
    assert expand is not None
    flat, matrix = _rows(x), expand.to(x.dtype).flatten(1)
    pixels, narrow = flat.shape
    wide = len(matrix)
    gram = _float_product(flat.t(), flat)
    parts = triton_norm.sums(x)
    e = _image(flat @ matrix.t(), x)
    stats = gram.new_empty((4, wide))
    sums = gram.new_empty(narrow)
    with torch.cuda.device_of(x):
        _statistics_kernel[(ceil_div(wide, ROWS),)](
            parts,
            x,
            gram,
            matrix,
            norm.weight,
            norm.bias,
            stats,
            sums,
            len(parts),
            narrow,
            wide,
            float(pixels),
            1 / pixels,
            norm.eps,
            ROWS=ROWS,
            PART=PART,
            num_warps=4,
        )
    y = triton_depthwise.forward(e, *conv, triton_norm.prologue(stats, norm.act))
    return y, [stats], [matrix, e, gram, sums]


def backward(
    grad: Tensor,
    x: Tensor,
    fusion: Fusion,
    stats: Tensor,
    matrix: Tensor,
    e: Tensor,
    gram: Tensor,
    sums: Tensor,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of ``x`` and of the fusion's tensors; see ``_Kernels``."""
    norm, conv, _, expand = fusion
    assert conv is not None
    assert expand is not None
    through = triton_depthwise.backward(
        grad.to(x.dtype), e, *conv, prologue=triton_norm.prologue(stats, norm.act)
    )
    coefficients = triton_norm.coefficients_of(through, e, stats, norm.eps)
    assert through.x is not None
    assert through.weight is not None
    flat, g = _rows(x), _rows(through.x)
    narrow, wide = flat.shape[1], len(matrix)
    of_x = flat.new_empty((narrow, narrow))
    constant = flat.new_empty(narrow)
    grad_expand = _float_product(g.t(), flat)
    sizes = {"ROWS": ROWS, "PART": PART, "num_warps": 4}
    blocks = ceil_div(narrow, PART)
    with torch.cuda.device_of(x):
        _input_kernel[(ceil_div(narrow, ROWS), blocks)](
            *(matrix, coefficients, of_x, constant, narrow, wide), **sizes
        )
        _weight_kernel[(ceil_div(wide, ROWS), blocks)](
            *(matrix, coefficients, gram, sums, grad_expand, narrow, wide), **sizes
        )
    grad_x = _image(torch.addmm(torch.addmm(constant, flat, of_x), g, matrix), x)
    of_norm = (coefficients[0], coefficients[1])
    return grad_x, *of_norm, through.weight, None, None, grad_expand.view(expand.shape)


def _rows(x: Tensor) -> Tensor:
    """View ``(N, C, H, W)`` in channels_last as ``(N H W, C)``."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _image(rows: Tensor, like: Tensor) -> Tensor:
    n, _, height, width = like.shape
    return rows.view(n, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def _float_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices of any type, with a float32 result."""
    if a.is_cuda and a.dtype is not torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


@jit("narrow")
@no_type_check
def _part(matrix, rows, columns, height, narrow):
    """Load a part in float32; 0 beyond ``height`` rows and ``narrow`` columns."""
    ok = (rows < height)[:, None] & (columns < narrow)[None, :]
    at = rows[:, None] * narrow + columns[None, :]
    return tl.load(matrix + at, ok, 0.0).to(tl.float32)


@jit("programs", "narrow", "wide")
@no_type_check
def _statistics_kernel(
    parts,
    x,
    gram,
    matrix,
    weight,
    bias,
    stats,
    sums,
    programs,
    narrow,
    wide,
    pixels,
    share,
    eps,
    ROWS: tl.constexpr,
    PART: tl.constexpr,
):
    """Compute scale and shift; ``parts``: partial sums of X minus its first pixel."""
    o = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    square = tl.full((ROWS,), 0, tl.float32)
    mean = tl.full((ROWS,), 0, tl.float32)
    for start in range(0, narrow, PART):
        j = start + tl.arange(0, PART)
        product = tl.full((ROWS, PART), 0, tl.float32)
        for first in range(0, narrow, PART):
            k = first + tl.arange(0, PART)
            w = _part(matrix, o, k, wide, narrow)
            g = _part(gram, k, j, narrow, narrow)
            product = tl.dot(w, g, product, input_precision="ieee")
        w = _part(matrix, o, j, wide, narrow)
        square += tl.sum(product * w, 1)
        total = add_up(parts, programs, 2 * narrow, narrow, j, 64, PART)
        total += pixels * tl.load(x + j, j < narrow, 0.0).to(tl.float32)
        mean += tl.sum(w * total[None, :], 1)
        if tl.program_id(0) == 0:
            tl.store(sums + j, total, j < narrow)
    mean = mean * share
    var = tl.maximum(square * share - mean * mean, 0.0, tl.PropagateNan.ALL)
    ok = o < wide
    scale = tl.load(weight + o, ok, 0.0) * tl.rsqrt(var + eps)
    tl.store(stats + o, mean, ok)
    tl.store(stats + wide + o, var, ok)
    tl.store(stats + 2 * wide + o, scale, ok)
    tl.store(stats + 3 * wide + o, tl.load(bias + o, ok, 0.0) - mean * scale, ok)


@jit("narrow", "wide")
@no_type_check
def _input_kernel(
    matrix,
    coefficients,
    of_x,
    constant,
    narrow,
    wide,
    ROWS: tl.constexpr,
    PART: tl.constexpr,
):
    """Compute a part of W' diag(k2) W, and of k1' W."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.program_id(1) * PART + tl.arange(0, PART)
    total = tl.full((ROWS, PART), 0, tl.float32)
    line = tl.full((ROWS,), 0, tl.float32)
    for start in range(0, wide, PART):
        o = start + tl.arange(0, PART)
        left = _part(matrix, o, i, wide, narrow)
        right = _part(matrix, o, k, wide, narrow)
        by_x = tl.load(coefficients + 2 * wide + o, o < wide, 0.0)
        by_one = tl.load(coefficients + 3 * wide + o, o < wide, 0.0)
        line += tl.sum(left * by_one[:, None], 0)
        total = tl.dot(tl.trans(left * by_x[:, None]), right, total, input_precision="ieee")
    kind = of_x.dtype.element_ty
    ok = (i < narrow)[:, None] & (k < narrow)[None, :]
    tl.store(of_x + i[:, None] * narrow + k[None, :], total.to(kind), ok)
    if tl.program_id(1) == 0:
        tl.store(constant + i, line.to(kind), i < narrow)


@jit("narrow", "wide")
@no_type_check
def _weight_kernel(
    matrix,
    coefficients,
    gram,
    sums,
    grad,
    narrow,
    wide,
    ROWS: tl.constexpr,
    PART: tl.constexpr,
):
    """Add a part of diag(k2) W (X' X) + k1 (sum of X)' to the gradient."""
    o = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * PART + tl.arange(0, PART)
    by_x = tl.load(coefficients + 2 * wide + o, o < wide, 0.0)[:, None]
    by_one = tl.load(coefficients + 3 * wide + o, o < wide, 0.0)[:, None]
    total = by_one * tl.load(sums + j, j < narrow, 0.0)[None, :]
    for start in range(0, narrow, PART):
        k = start + tl.arange(0, PART)
        w = by_x * _part(matrix, o, k, wide, narrow)
        g = _part(gram, k, j, narrow, narrow)
        total = tl.dot(w, g, total, input_precision="ieee")
    total += _part(grad, o, j, wide, narrow)
    ok = (o < wide)[:, None] & (j < narrow)[None, :]
    tl.store(grad + o[:, None] * narrow + j[None, :], total, ok)
