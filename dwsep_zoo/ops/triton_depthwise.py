"""Depthwise convolution and its gradients on NVIDIA GPUs, as Triton kernels.

A depthwise convolution does only 2 k^2 operations per value that it reads, so memory limits its
speed, and the kernels are designed for that:

* The layout is channels_last. A program walks along strips of a few rows from left to right, for a
  block of channels, which are adjacent in memory. It loads a value once for all outputs of the
  strip that it contributes to: (rows + k - 1) / rows loads per output instead of k^2. The next load
  overlaps with the use of the last one.
* Sums are float32 for every type of tensor.
* The backward pass is one sweep over the input. Both gradients need the output's gradient at the
  same places, so input and gradient are read once for two results. With stride s the program walks
  over cells of s x s input pixels: each pixel of a cell has a fixed set of taps, so no product is
  wasted. The weight's gradient is summed within a program, written as one partial sum per
  program, and added up by a second kernel in a fixed order. There are no atomics, and the number of
  programs depends only on the shape, so results are the same on every run.
* An optional prologue ``act(x * scale + shift)`` is applied as the input is read. Batch
  normalisation and activation before the convolution then never write their result to memory.
"""

# ruff: noqa: RUF005 - Triton has no (*tuple, value)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, no_type_check

import torch
from torch import Tensor

from dwsep_zoo.ops.triton_common import (
    ACTIVATIONS,
    DTYPES,
    activate,
    block_of,
    ceil_div,
    constant,
    differentiate,
    interpreted,
    jit,
    tl,
    unavailable,
)

KERNEL_SIZES = (3, 5, 7)
STRIDES = (1, 2)
PROGRAMS = 2048  # in a backward sweep: a few waves on the largest GPU, so the last costs little
# Rows of a strip and channels per thread, by kernel size and stride.
FORWARD_TILES = {
    (3, 1): (2, 4),
    (3, 2): (2, 2),
    (5, 1): (4, 2),
    (5, 2): (2, 2),
    (7, 1): (2, 1),
    (7, 2): (1, 1),
}
BACKWARD_TILES = {
    (3, 1): (2, 4),
    (3, 2): (1, 4),
    (5, 1): (2, 1),
    (5, 2): (1, 1),
    (7, 1): (1, 1),
    (7, 2): (1, 1),
}
WARPS = 2  # per program
ENOUGH_THREADS = 2**18  # to fill the largest GPU
SHORTEST_STRIP = 8  # columns; the first ones of a strip are read twice
LONGEST_IMAGE = 2**31  # offsets have 32 bits within an image and 64 between images


class Prologue(NamedTuple):
    """``act(x * scale + shift)``, computed in float32, before the convolution.

    Zero padding is applied after it. Batch normalisation is ``scale = gamma / std``,
    ``shift = beta - mean * scale``.
    """

    scale: Tensor  # (C,)
    shift: Tensor  # (C,)
    act: str = "identity"  # one of ACTIVATIONS


class Gradients(NamedTuple):
    """The requested gradients; the others are None."""

    x: Tensor | None
    weight: Tensor | None
    scale: Tensor | None  # (C,) float32: sum of g * x, g = gradient at the activation's input
    shift: Tensor | None  # (C,) float32: sum of g


@dataclass(frozen=True)
class Tile:
    """The division of the work into programs.

    A strip is a few rows of an image that a program walks along from left to right. Rows and
    columns are output pixels in ``forward``, stride x stride cells of the input in ``backward``.
    """

    rows: int  # in a strip
    strips: int  # per program at a time, a power of two
    chans: int  # per program, a power of two
    warps: int
    columns: int = 2**30  # in a strip, at most


def covered(x: Tensor, weight: Tensor, stride: int, padding: int) -> str | None:
    """Return None, or why ``forward`` and ``backward`` do not support these arguments."""
    if (reason := unavailable()) is not None:
        return reason
    if not (x.is_cuda or interpreted()) or weight.device != x.device:
        return f"input on {x.device}, weight on {weight.device}"
    if x.dim() != 4 or weight.dim() != 4:
        return f"input of {x.dim()} and weight of {weight.dim()} dimensions instead of 4"
    if x.dtype not in DTYPES or weight.dtype not in DTYPES:
        return f"input of {x.dtype}, weight of {weight.dtype}"
    if (reason := covered_sizes(x.shape, weight, stride, padding)) is not None:
        return reason
    if not x.is_contiguous(memory_format=torch.channels_last):
        return "input is not channels_last"
    return None


def covered_sizes(shape: torch.Size, weight: Tensor, stride: int, padding: int) -> str | None:
    """Check the shape of the input, as part of :func:`covered`."""
    size = weight.shape[-1]
    if weight.shape[0] != shape[1] or weight.shape[1] != 1:
        return f"weight {tuple(weight.shape)} is not one filter for each of {shape[1]} channels"
    if size not in KERNEL_SIZES or weight.shape[-2] != size:
        return f"kernel of {weight.shape[-2]} x {size}"
    if stride not in STRIDES:
        return f"stride {stride}"
    if not 0 <= padding <= size // 2:
        return f"padding {padding} for a kernel of {size}"
    if math.prod(shape) == 0 or min(_output_size(shape, size, stride, padding)) < 1:
        return f"input {tuple(shape)} gives an empty output"
    if math.prod(shape[1:]) >= LONGEST_IMAGE:
        return f"input {tuple(shape)} has images of 2**31 values or more"
    return None


def forward(
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    prologue: Prologue | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Convolve each channel with its own filter; sums in float32, rounded once.

    Args:
        x: ``(N, C, H, W)``, channels_last.
        weight: ``(C, 1, k, k)``; its type may differ from that of ``x``.
        stride: the same in both directions.
        padding: zeros on each side, in pixels.
        prologue: applied to ``x`` first.
        tile: division of the work; by default a rule by shape.

    Returns:
        ``(N, C, H', W')``, channels_last, of the type of ``x``.
    """
    n, chans, height, width = x.shape
    size = weight.shape[-1]
    out_height, out_width = _output_size(x.shape, size, stride, padding)
    tile = tile or forward_tile(n, chans, out_height, out_width, size, stride)
    y = _empty_nhwc(x, out_height, out_width)
    columns = min(tile.columns, out_width)
    tiles_h, tiles_w = ceil_div(out_height, tile.rows), ceil_div(out_width, columns)
    groups, blocks = ceil_div(n * tiles_h * tiles_w, tile.strips), ceil_div(chans, tile.chans)
    vector = math.gcd(chans, 16)
    with torch.cuda.device_of(x):
        _forward_kernel[(groups * blocks,)](
            x,
            _pack(weight),
            *_float32(prologue),
            y,
            n,
            height,
            width,
            chans // vector,
            out_height,
            out_width,
            tiles_h,
            tiles_w,
            columns,
            SIZE=size,
            STRIDE=stride,
            PADDING=padding,
            ACT=prologue.act if prologue else None,
            VECTOR=vector,
            ROWS=tile.rows,
            STRIPS=tile.strips,
            CHANS=tile.chans,
            num_warps=tile.warps,
            enable_fp_fusion=True,
        )
    return y


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    mask: tuple[bool, bool] = (True, True),
    prologue: Prologue | None = None,
    tile: Tile | None = None,
) -> Gradients:
    """Return the gradients of all inputs of ``forward``, in one sweep over ``grad`` and ``x``.

    Args:
        grad: ``(N, C, H', W')``; copied if it is not channels_last.
        x: as in ``forward``.
        weight: as in ``forward``.
        stride: as in ``forward``.
        padding: as in ``forward``.
        mask: whether to compute the gradient of the input (with the prologue's scale and shift),
            and of the weight.
        prologue: as in ``forward``. Scale and shift are independent inputs here; if they depend on
            the mean and variance of ``x``, the caller continues with their gradients.
        tile: division of the work; by default a rule by shape.

    Returns:
        The gradients of ``x`` and of the weight, in the type and layout of these tensors.
    """
    need_x, need_weight = mask
    n, chans, height, width = x.shape
    size = weight.shape[-1]
    cells_h, cells_w = ceil_div(height, stride), ceil_div(width, stride)
    tile = tile or backward_tile(n, chans, cells_h, cells_w, size, stride)
    columns = min(tile.columns, cells_w)
    tiles_h, tiles_w = ceil_div(cells_h, tile.rows), ceil_div(cells_w, columns)
    groups, blocks = ceil_div(n * tiles_h * tiles_w, tile.strips), ceil_div(chans, tile.chans)
    programs = min(ceil_div(PROGRAMS, blocks), groups)
    vector = math.gcd(chans, 16)
    grad = grad.contiguous(memory_format=torch.channels_last)

    taps = size * size if need_weight else 0
    sums = 2 if prologue and need_x else 0  # for scale and shift
    partial = x.new_empty((programs, taps + sums, chans), dtype=torch.float32)
    grad_x = _empty_nhwc(x, height, width) if need_x else None
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    grad_prologue = x.new_empty((sums, chans), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _backward_kernel[(programs * blocks,)](
            grad,
            x,
            _pack(weight),
            *_float32(prologue),
            grad_x,
            partial,
            n,
            height,
            width,
            chans // vector,
            grad.shape[2],
            grad.shape[3],
            tiles_h,
            tiles_w,
            columns,
            SIZE=size,
            STRIDE=stride,
            PADDING=padding,
            ACT=prologue.act if prologue else None,
            NEED_X=need_x,
            NEED_WEIGHT=need_weight,
            VECTOR=vector,
            ROWS=tile.rows,
            STRIPS=tile.strips,
            CHANS=tile.chans,
            num_warps=tile.warps,
            enable_fp_fusion=True,
        )
        if taps + sums:
            _sum_kernel[(taps + sums, ceil_div(chans, SUM_CHANS))](
                partial,
                grad_weight,
                grad_prologue,
                programs,
                chans,
                TAPS=taps,
                SUMS=sums,
                PROGRAMS=SUM_PROGRAMS,
                CHANS=SUM_CHANS,
                num_warps=8,
                enable_fp_fusion=True,
            )
    return Gradients(
        grad_x, grad_weight if need_weight else None, *(grad_prologue if sums else (None, None))
    )


def forward_tile(images: int, chans: int, height: int, width: int, size: int, stride: int) -> Tile:
    """Return the tile for outputs of ``height`` x ``width``."""
    return _tile(images, chans, height, width, *FORWARD_TILES[size, stride])


def backward_tile(images: int, chans: int, height: int, width: int, size: int, stride: int) -> Tile:
    """Return the tile for inputs of ``height`` x ``width`` cells."""
    return _tile(images, chans, height, width, *BACKWARD_TILES[size, stride])


def _tile(images: int, chans: int, height: int, width: int, most_rows: int, values: int) -> Tile:
    """Choose the tile; ``values``: channels per thread, all in its strip."""
    rows, block = block_of(height, least=1, most=most_rows), block_of(chans, least=16, most=64)
    strips = 32 * WARPS * values // block
    threads = images * ceil_div(height, rows) * ceil_div(chans, block) * block // values
    parts = max(1, min(ENOUGH_THREADS // threads, width // SHORTEST_STRIP))
    return Tile(rows, strips, block, WARPS, ceil_div(width, parts))


def _output_size(shape: torch.Size, size: int, stride: int, padding: int) -> tuple[int, int]:
    height, width = ((n + 2 * padding - size) // stride + 1 for n in shape[2:])
    return height, width


def _empty_nhwc(x: Tensor, height: int, width: int) -> Tensor:
    shape = (x.shape[0], x.shape[1], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _pack(weight: Tensor) -> Tensor:
    """Return ``(k * k, C)`` float32, where neighbouring channels of a tap are adjacent."""
    taps = weight.detach().flatten(1).t()  # one copy follows, by the call that needs it
    return taps.to(torch.float32, memory_format=torch.contiguous_format).contiguous()


def _float32(prologue: Prologue | None) -> tuple[Tensor | None, Tensor | None]:
    if prologue is None:
        return None, None
    if prologue.act not in ACTIVATIONS:
        raise ValueError(f"activation {prologue.act!r}; choices: {', '.join(ACTIVATIONS)}")
    return (
        prologue.scale.detach().float().contiguous(),
        prologue.shift.detach().float().contiguous(),
    )


@constant
@no_type_check
def _at(row, column, size):
    """Return the number of the tap at a row and a column, or -1."""
    return row * size + column if 0 <= row < size and 0 <= column < size else -1


@constant
@no_type_check
def _tap(pixel, q, d, size, stride, base):
    """Return the tap that connects a pixel of a tile to the gradient at (q, d), or -1.

    Output o reads the input at ``stride * o + tap - padding``.
    """
    row = pixel // stride + base - stride * q
    column = pixel % stride + base - stride * d
    return row * size + column if 0 <= row < size and 0 <= column < size else -1


@constant
@no_type_check
def _pixel(tap, q, d, size, stride, base, rows):
    """Return the pixel of a tile that a tap connects to the gradient at (q, d), or -1."""
    row = tap // size - base + stride * q
    column = tap % size - base + stride * d
    inside = 0 <= row < rows * stride and 0 <= column < stride
    return row * stride + column if inside else -1


@constant
@no_type_check
def _ahead(size, stride):
    """Return the number of outputs in a row that an input pixel can contribute to."""
    return (size - 1) // stride + 1


@constant
@no_type_check
def _place(pixel, cell, stride, rows):
    """Return the index of a cell's pixel in consecutive columns of pixels."""
    return (cell * stride + pixel % stride) * rows * stride + pixel // stride


@jit()
@no_type_check
def _shifted(values, new, COUNT: tl.constexpr):
    """Return ``new`` followed by ``values``, cut to ``COUNT``."""
    for k in tl.static_range(COUNT - len(new)):
        new = new + (values[k],)
    return new


@jit()
@no_type_check
def _columns(image, row, first, limits, width, chans, COUNT: tl.constexpr):
    """Load ``COUNT`` columns, starting at ``row`` and ``first``; 0 beyond a row's limit."""
    columns = ()
    for d in tl.static_range(COUNT):
        w = first + d
        for q in tl.static_range(len(limits)):
            ok = w.to(tl.uint32) < limits[q]
            columns = columns + (tl.load(image + ((row + q) * width + w) * chans, ok, 0.0),)
    return columns


@jit()
@no_type_check
def _in_front(values, new, FROM: tl.constexpr, COUNT: tl.constexpr, ALL: tl.constexpr):
    """Return ``COUNT`` of ``new`` as float32 followed by ``values``, cut to ``ALL``."""
    front = ()
    for k in tl.static_range(COUNT):
        front = front + (new[FROM + k].to(tl.float32),)
    return _shifted(values, front, ALL)


_SIZES = (
    *("images", "height", "width", "chan_vectors", "out_height", "out_width"),
    *("tiles_h", "tiles_w", "columns"),
)

# Indices in the kernels: u columns of a strip, q rows of the loaded data, r rows of the strip, p
# its pixels, d columns of the gradient, t taps of the filter, i its rows and j its columns, m
# outputs before the column's own. A row outside the image has no columns: compared as unsigned
# numbers, a column inside the image is less than its limit.
# Weights, scale and shift are loaded for a whole tile: all threads need them in the layout of the
# data, and a load that hits the cache is cheaper than an exchange between threads.


@jit(*_SIZES)
@no_type_check
def _forward_kernel(
    x,
    weight,
    scale,
    shift,
    y,
    images,
    height,
    width,
    chan_vectors,
    out_height,
    out_width,
    tiles_h,
    tiles_w,
    columns,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    ACT: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    STRIPS: tl.constexpr,
    CHANS: tl.constexpr,
):
    """Read each input pixel once per strip and add it to all outputs that it contributes to."""
    AHEAD: tl.constexpr = _ahead(SIZE, STRIDE)
    UNROLL: tl.constexpr = AHEAD if SIZE == 3 else 1  # the sums stay in registers
    IN_ROWS: tl.constexpr = STRIDE * (ROWS - 1) + SIZE

    chans = chan_vectors * VECTOR  # so that the compiler knows a divisor, and loads vectors
    blocks = (chans + CHANS - 1) // CHANS
    c = (tl.program_id(0) % blocks * CHANS + tl.arange(0, CHANS))[None, :]
    c_inside = c < chans
    c_tile = c + tl.full((STRIPS, CHANS), 0, tl.int32)
    taps = ()
    for t in tl.static_range(SIZE * SIZE):
        taps = taps + (tl.load(weight + t * chans + c_tile, c_inside, 0.0),)
    if ACT is not None:
        a = tl.load(scale + c_tile, c_inside, 0.0)
        b = tl.load(shift + c_tile, c_inside, 0.0)

    strip = (tl.program_id(0) // blocks * STRIPS + tl.arange(0, STRIPS))[:, None]
    first = strip % tiles_w * columns
    row = strip // tiles_w % tiles_h * ROWS
    image = strip // (tiles_w * tiles_h)
    x += image.to(tl.int64) * (height * width * chans) + c
    y += image.to(tl.int64) * (out_height * out_width * chans) + c
    inside = (image < images) & c_inside
    limits = ()
    for q in tl.static_range(IN_ROWS):
        h = row * STRIDE + (q - PADDING)
        limit = tl.where(inside & (h >= 0) & (h < height), width, 0)
        limits = limits + (limit.to(tl.uint32),)
    last = tl.minimum(first + columns, out_width)
    out_limits = ()
    for r in tl.static_range(ROWS):
        out_limits = out_limits + (tl.where(inside & (row + r < out_height), last, 0),)

    zero = tl.full((STRIPS, CHANS), 0, tl.float32)
    sums = (zero,) * (AHEAD * ROWS)
    row_in, column_in = row * STRIDE - PADDING, first * STRIDE - PADDING
    ahead = _columns(x, row_in, column_in, limits, width, chans, UNROLL * STRIDE)
    for start in range(0, columns + (AHEAD - 1), UNROLL):
        read = ahead  # while these are used, the next ones are on their way
        w = column_in + (start + UNROLL) * STRIDE
        ahead = _columns(x, row_in, w, limits, width, chans, UNROLL * STRIDE)
        for v in tl.static_range(UNROLL):
            for s in tl.static_range(STRIDE):
                for q in tl.static_range(IN_ROWS):
                    value = read[(v * STRIDE + s) * IN_ROWS + q].to(tl.float32)
                    if ACT is not None:
                        w = column_in + (start + v) * STRIDE + s
                        value = activate(value * a + b, ACT)
                        value = tl.where(w.to(tl.uint32) < limits[q], value, 0.0)
                    new = ()
                    for m in tl.static_range(AHEAD):
                        for r in tl.static_range(ROWS):
                            total = sums[m * ROWS + r]
                            if _at(q - STRIDE * r, s + STRIDE * m, SIZE) >= 0:
                                total += value * taps[_at(q - STRIDE * r, s + STRIDE * m, SIZE)]
                            new = new + (total,)
                    sums = new
            o = first + (start + v - (AHEAD - 1))
            for r in tl.static_range(ROWS):
                ok = (o >= first) & (o < out_limits[r])
                at = ((row + r) * out_width + o) * chans
                total = sums[(AHEAD - 1) * ROWS + r]
                tl.store(y + at, total.to(y.dtype.element_ty), ok)
            sums = _shifted(sums, (zero,) * ROWS, AHEAD * ROWS)


@jit(*_SIZES)
@no_type_check
def _backward_kernel(
    grad,
    x,
    weight,
    scale,
    shift,
    grad_x,
    partial,
    images,
    height,
    width,
    chan_vectors,
    out_height,
    out_width,
    tiles_h,
    tiles_w,
    columns,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    ACT: tl.constexpr,
    NEED_X: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    STRIPS: tl.constexpr,
    CHANS: tl.constexpr,
):
    """Keep the columns of the gradient as long as they touch the current column of cells.

    A program walks over groups of strips; its part of the weight's gradient is in registers.
    """
    TAPS: tl.constexpr = SIZE * SIZE
    PIXELS: tl.constexpr = ROWS * STRIDE * STRIDE
    # Gradient rows and columns from FIRST on, seen from a cell, touch the strip and the cell.
    FIRST: tl.constexpr = -((SIZE - 1 - PADDING) // STRIDE)
    BASE: tl.constexpr = PADDING - STRIDE * FIRST
    GRAD_ROWS: tl.constexpr = (ROWS * STRIDE - 1 + BASE) // STRIDE + 1
    GRAD_COLUMNS: tl.constexpr = (STRIDE - 1 + BASE) // STRIDE + 1
    UNROLL: tl.constexpr = GRAD_COLUMNS if SIZE == 3 else 1  # the gradient stays in registers
    LINES: tl.constexpr = (TAPS if NEED_WEIGHT else 0) + (2 if NEED_X and ACT is not None else 0)

    chans = chan_vectors * VECTOR
    blocks = (chans + CHANS - 1) // CHANS
    program = tl.program_id(0) // blocks
    programs = tl.num_programs(0) // blocks
    c_line = tl.program_id(0) % blocks * CHANS + tl.arange(0, CHANS)
    c = c_line[None, :]
    c_inside = c < chans
    c_tile = c + tl.full((STRIPS, CHANS), 0, tl.int32)
    taps = ()
    for t in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + t * chans + c_tile, c_inside, 0.0),)

    zero = tl.full((STRIPS, CHANS), 0, tl.float32)
    weight_sums = (zero,) * TAPS
    scale_sum = zero
    shift_sum = zero
    if ACT is not None:
        a = tl.load(scale + c_tile, c_inside, 0.0)
        b = tl.load(shift + c_tile, c_inside, 0.0)

    groups = (images * tiles_h * tiles_w + STRIPS - 1) // STRIPS
    for group in range(program, groups, programs):
        strip = (group * STRIPS + tl.arange(0, STRIPS))[:, None]
        first = strip % tiles_w * columns
        row = strip // tiles_w % tiles_h * ROWS
        image = strip // (tiles_w * tiles_h)
        inside = (image < images) & c_inside
        x_image = x + (image.to(tl.int64) * (height * width * chans) + c)
        if NEED_X:
            grad_x_image = grad_x + (image.to(tl.int64) * (height * width * chans) + c)
        grad_image = grad + (image.to(tl.int64) * (out_height * out_width * chans) + c)
        limits = ()  # for the gradient's rows
        for q in tl.static_range(GRAD_ROWS):
            h = row + (q + FIRST)
            limit = tl.where(inside & (h >= 0) & (h < out_height), out_width, 0)
            limits = limits + (limit.to(tl.uint32),)
        last = tl.minimum((first + columns) * STRIDE, width)
        x_limits = ()
        for r in tl.static_range(ROWS * STRIDE):
            limit = tl.where(inside & (row * STRIDE + r < height), last, 0)
            x_limits = x_limits + (limit.to(tl.uint32),)

        # Columns of the gradient that touch a column of cells, the last one first.
        window = (zero,) * (GRAD_COLUMNS * GRAD_ROWS)
        kept = _columns(
            grad_image, row + FIRST, first + FIRST, limits, out_width, chans, GRAD_COLUMNS - 1
        )
        for d in tl.static_range(GRAD_COLUMNS - 1):
            window = _in_front(window, kept, d * GRAD_ROWS, GRAD_ROWS, GRAD_COLUMNS * GRAD_ROWS)
        row_g, column_g = row + FIRST, first + (GRAD_COLUMNS - 1 + FIRST)
        row_x, column_x = row * STRIDE, first * STRIDE
        ahead = _columns(grad_image, row_g, column_g, limits, out_width, chans, UNROLL)
        ahead_x = _columns(x_image, row_x, column_x, x_limits, width, chans, UNROLL * STRIDE)
        for start in range(0, columns, UNROLL):
            read, read_x = ahead, ahead_x  # while these are used, the next ones are on their way
            w = start + UNROLL
            ahead = _columns(grad_image, row_g, column_g + w, limits, out_width, chans, UNROLL)
            w = column_x + (start + UNROLL) * STRIDE
            ahead_x = _columns(x_image, row_x, w, x_limits, width, chans, UNROLL * STRIDE)
            for v in tl.static_range(UNROLL):
                window = _in_front(window, read, v * GRAD_ROWS, GRAD_ROWS, GRAD_COLUMNS * GRAD_ROWS)
                w = column_x + (start + v) * STRIDE
                inputs = ()  # for the convolution
                for p in tl.static_range(PIXELS):
                    pixel = read_x[_place(p, v, STRIDE, ROWS)].to(tl.float32)
                    if ACT is not None:
                        ok = (w + p % STRIDE).to(tl.uint32) < x_limits[p // STRIDE]
                        pixel = tl.where(ok, activate(pixel * a + b, ACT), 0.0)
                    inputs = inputs + (pixel,)

                input_grads = (zero,) * PIXELS
                for d in tl.static_range(GRAD_COLUMNS):
                    for q in tl.static_range(GRAD_ROWS):
                        g = window[(GRAD_COLUMNS - 1 - d) * GRAD_ROWS + q]
                        if NEED_X:
                            new = ()
                            for p in tl.static_range(PIXELS):
                                total = input_grads[p]
                                if _tap(p, q, d, SIZE, STRIDE, BASE) >= 0:
                                    total += g * taps[_tap(p, q, d, SIZE, STRIDE, BASE)]
                                new = new + (total,)
                            input_grads = new
                        if NEED_WEIGHT:
                            new = ()
                            for t in tl.static_range(TAPS):
                                total = weight_sums[t]
                                if _pixel(t, q, d, SIZE, STRIDE, BASE, ROWS) >= 0:
                                    total += g * inputs[_pixel(t, q, d, SIZE, STRIDE, BASE, ROWS)]
                                new = new + (total,)
                            weight_sums = new

                if NEED_X:
                    for p in tl.static_range(PIXELS):
                        ok = (w + p % STRIDE).to(tl.uint32) < x_limits[p // STRIDE]
                        g = input_grads[p]
                        if ACT is not None:
                            # A cell extends beyond the image into the padding.
                            pixel = read_x[_place(p, v, STRIDE, ROWS)].to(tl.float32)
                            g = tl.where(ok, differentiate(g, pixel * a + b, ACT), 0.0)
                            scale_sum += g * pixel
                            shift_sum += g
                            g = g * a
                        at = ((row_x + p // STRIDE) * width + (w + p % STRIDE)) * chans
                        tl.store(grad_x_image + at, g.to(grad_x.dtype.element_ty), ok)

    partial += program * LINES * chans + c_line
    ok = c_line < chans
    if NEED_WEIGHT:
        for t in tl.static_range(TAPS):
            tl.store(partial + t * chans, tl.sum(weight_sums[t], 0), ok)
    if NEED_X and ACT is not None:
        tl.store(partial + (LINES - 2) * chans, tl.sum(scale_sum, 0), ok)
        tl.store(partial + (LINES - 1) * chans, tl.sum(shift_sum, 0), ok)


SUM_PROGRAMS, SUM_CHANS = 256, 16


@jit("programs", "chans")
@no_type_check
def _sum_kernel(
    partial,
    grad_weight,
    grad_prologue,
    programs,
    chans,
    TAPS: tl.constexpr,
    SUMS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    CHANS: tl.constexpr,
):
    """Add the partial sums of a tap (or of scale, or shift) over all programs."""
    line = tl.program_id(0)
    c = tl.program_id(1) * CHANS + tl.arange(0, CHANS)
    total = tl.full((PROGRAMS, CHANS), 0, tl.float32)
    for first in range(0, programs, PROGRAMS):
        program = (first + tl.arange(0, PROGRAMS))[:, None]
        at = (program * (TAPS + SUMS) + line) * chans + c[None, :]
        total += tl.load(partial + at, (program < programs) & (c < chans)[None, :], 0.0)
    total = tl.sum(total, 0)
    if line < TAPS:
        at = c * TAPS + line
        tl.store(grad_weight + at, total.to(grad_weight.dtype.element_ty), c < chans)
    else:
        tl.store(grad_prologue + (line - TAPS) * chans + c, total, c < chans)
