"""The kernels of ``native.cpp``, compiled for this processor at first use.

Compilation takes a few seconds and a C++ compiler, which ``torch.compile`` needs too. The library
is stored in the user's cache. Without a compiler, PyTorch's operators compute everything, with
detours around the slowest ones (:mod:`dwsep_zoo.ops.cpu`), and :func:`status` reports it in the log
of every training on a CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from dwsep_zoo.files import cache_folder

SOURCE = Path(__file__).with_name("native.cpp")
INSTALL = "install g++, or name one in the variable CXX"
VECTOR = 16
"""Minimum number of channels of the kernels."""
ACTIVATIONS = ("identity", "relu", "relu6", "hard_swish", "silu")
"""Activations in the order of their numbers in ``native.cpp``."""
KERNEL_SIZES = (3, 5, 7)
STRIDES = (1, 2)

_POINTER, _LONG, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_double
_SIGNATURES = {
    "dwsep_norm_act": [*[_POINTER] * 5, _LONG, _LONG, _DOUBLE, *[_INT] * 3],
    "dwsep_norm_act_backward": [*[_POINTER] * 6, _LONG, _LONG, _DOUBLE, *[_INT] * 3],
    "dwsep_depthwise_backward": [*[_POINTER] * 5, *[_LONG] * 6, *[_INT] * 5],
    "dwsep_norm_act_depthwise": [*[_POINTER] * 10, *[_LONG] * 6, *[_DOUBLE] * 2, *[_INT] * 6],
    "dwsep_norm_act_depthwise_backward": [
        *[_POINTER] * 13,
        *[_LONG] * 6,
        *[_DOUBLE] * 2,
        *[_INT] * 6,
    ],
}


@dataclass(frozen=True)
class Native:
    """The compiled library or ``None``, and a short reason."""

    library: ctypes.CDLL | None
    why: str


@lru_cache(maxsize=1)
def native() -> Native:
    """Load the library, compiling it if it is not in the cache."""
    if platform.system() != "Linux":
        return Native(None, f"not for {platform.system()}")
    compiler = _compiler()
    if compiler is None:
        return Native(None, f"no C++ compiler; {INSTALL}")
    try:
        version = _output(*compiler, "--version").partition("\n")[0]
        if "clang" in version:  # its own OpenMP would add threads to PyTorch's
            return Native(None, f"not by {version}; {INSTALL}")
        library = _library_of(compiler, version)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        why = lines[0] if lines else type(error).__name__
        return Native(None, f"{shlex.join(compiler)} failed: {why}")
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return Native(library, version)


def is_ready() -> bool:
    """Whether the kernels can be called."""
    return native().library is not None


# torch.compile treats the answer as a constant and does not trace its computation. The function
# torch.compiler.assume_constant_result does this too, but would import the compiler here.
is_ready._dynamo_marked_constant = True  # type: ignore[attr-defined]


def status() -> str:
    """Name the CPU kernels for norms and depthwise convolutions, and the reason, in one line."""
    found = native()
    return f"{'this project' if found.library else 'PyTorch'}'s ({found.why})"


def covers(x: Tensor) -> bool:
    """Whether the kernels support the layout, type and number of channels of ``x``."""
    return (
        x.dtype in (torch.bfloat16, torch.float32)
        and x.ndim == 4
        and x.shape[1] >= VECTOR
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and is_ready()
    )


def covers_depthwise(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether :func:`depthwise_backward` supports these arguments."""
    size = weight.shape[-1]
    return (
        stride in STRIDES
        and size in KERNEL_SIZES
        and padding < size
        and weight.shape[0] == x.shape[1]
        and covers(x)
        and min(x.shape[2:]) + 2 * padding >= size
    )


def covers_norm_act_depthwise(x: Tensor, taps: Tensor, stride: int, padding: int) -> bool:
    """Whether :func:`norm_act_depthwise` supports these arguments; ``x``: the norm's input."""
    return taps.shape[-1] == 3 and covers_depthwise(x, taps, stride, padding)


def norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, act: str
) -> tuple[Tensor, Tensor]:
    """Normalise over the batch, then activate.

    Args:
        x: ``(N, C, H, W)`` for which :func:`covers` is true.
        weight: ``(C,)`` float32.
        bias: ``(C,)`` float32, added after the multiplication with ``weight``.
        eps: added to the variance.
        act: one of :data:`ACTIVATIONS`.

    Returns:
        A tensor like ``x``, and ``(4, C)`` float32: mean, biased variance, and the resulting scale
        and shift.
    """
    y, chans = torch.empty_like(x), x.shape[1]
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    stats = torch.empty(4, chans)
    _library().dwsep_norm_act(
        *_pointers(x, y, weight, bias, stats),
        *(x.numel() // chans, chans, eps),
        *(x.dtype is torch.bfloat16, ACTIVATIONS.index(act), torch.get_num_threads()),
    )
    return y, stats


def norm_act_backward(
    grad: Tensor, x: Tensor, stats: Tensor, eps: float, act: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, ``weight`` and ``bias`` of :func:`norm_act`."""
    grad, chans = _like(grad, x), x.shape[1]
    grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty(chans), torch.empty(chans)
    _library().dwsep_norm_act_backward(
        *_pointers(grad, x, stats, grad_x, grad_weight, grad_bias),
        *(x.numel() // chans, chans, eps),
        *(x.dtype is torch.bfloat16, ACTIVATIONS.index(act), torch.get_num_threads()),
    )
    return grad_x, grad_weight, grad_bias


def depthwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, need_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Compute the gradients of ``x`` (if needed) and, in float32, ``weight``, in one sweep.

    Args:
        grad: ``(N, C, H', W')``.
        x: ``(N, C, H, W)`` for which :func:`covers_depthwise` is true.
        weight: ``(C, 1, k, k)``.
        stride: stride of the convolution.
        padding: zeros on each side.
        need_x: whether to compute the gradient of ``x``.
    """
    grad_weight = torch.empty_like(weight, dtype=torch.float32)
    if weight.shape[-1] == 3:
        grad_x, grad_filters = act_depthwise_backward(
            grad, x, weight, "identity", stride, padding, need_x=need_x
        )
        return grad_x, grad_weight.copy_(grad_filters)
    grad, (images, chans, *image) = _like(grad, x), x.shape
    filters = weight.float().contiguous()
    grad_filters = torch.empty_like(filters)
    grad_x = torch.empty_like(x) if need_x else None
    _library().dwsep_depthwise_backward(
        *_pointers(grad, x, filters, grad_x, grad_filters),
        *(images, chans, *image, *grad.shape[2:]),
        *(weight.shape[-1], stride, padding, x.dtype is torch.bfloat16, torch.get_num_threads()),
    )
    return grad_x, grad_weight.copy_(grad_filters)


def act_depthwise(x: Tensor, taps: Tensor, act: str, stride: int, padding: int) -> Tensor:
    """Activate and convolve depthwise with ``taps``, ``(C, 1, 3, 3)``."""
    return _forward(x, None, taps, (0.0, act), (stride, padding))[0]


def act_depthwise_backward(
    grad: Tensor,
    x: Tensor,
    taps: Tensor,
    act: str,
    stride: int,
    padding: int,
    need_x: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of ``x`` (if needed) and ``taps`` of :func:`act_depthwise`."""
    grad_x = torch.empty_like(x) if need_x else None
    _, of_taps, _ = _backward(grad, x, grad_x, taps, None, (0.0, act), (stride, padding))
    return grad_x, of_taps


def norm_act_depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    taps: Tensor,
    eps: float,
    act: str,
    stride: int,
    padding: int,
) -> tuple[Tensor, Tensor]:
    """:func:`norm_act`, then a depthwise convolution with ``taps``, ``(C, 1, 3, 3)``.

    The intermediate values are not rounded to the type of ``x``.
    """
    y, _, stats, _ = _forward(x, (weight, bias), taps, (eps, act), (stride, padding))
    assert stats is not None
    return y, stats


def norm_act_depthwise_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    taps: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    eps: float,
    act: str,
    stride: int,
    padding: int,
    eps2: float,
    act2: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`norm_act_depthwise`, then :func:`norm_act`.

    Returns:
        The output, the convolution's output, and the statistics of both norms.
    """
    y, z, stats, stats2 = _forward(
        *(x, (weight, bias), taps, (eps, act), (stride, padding)),
        *((weight2, bias2), (eps2, act2)),
    )
    assert z is not None
    assert stats is not None
    assert stats2 is not None
    return z, y, stats, stats2


def norm_act_depthwise_backward(
    grad: Tensor,
    x: Tensor,
    taps: Tensor,
    stats: Tensor,
    eps: float,
    act: str,
    stride: int,
    padding: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of all tensor inputs of :func:`norm_act_depthwise`."""
    grad_x = torch.empty_like(x)
    of_norm, of_taps, _ = _backward(grad, x, grad_x, taps, stats, (eps, act), (stride, padding))
    return grad_x, *of_norm, of_taps


def norm_act_depthwise_norm_act_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    taps: Tensor,
    stats: Tensor,
    stats2: Tensor,
    eps: float,
    act: str,
    stride: int,
    padding: int,
    eps2: float,
    act2: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of all tensor inputs of :func:`norm_act_depthwise_norm_act`."""
    grad_x = torch.empty_like(x)
    of_norm, of_taps, of_norm2 = _backward(
        *(grad, x, grad_x, taps, stats, (eps, act), (stride, padding), y, stats2, (eps2, act2))
    )
    return grad_x, *of_norm, of_taps, *of_norm2


def _forward(
    x: Tensor,
    norm: tuple[Tensor, Tensor] | None,
    taps: Tensor,
    how: tuple[float, str],
    shape: tuple[int, int],
    norm2: tuple[Tensor, Tensor] | None = None,
    how2: tuple[float, str] = (0.0, "identity"),
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the outputs of the convolution and the second norm, and the norms' statistics."""
    (images, chans, *size), (stride, padding) = x.shape, shape
    image = [(side + 2 * padding - 3) // stride + 1 for side in size]
    y = torch.empty((images, chans, *image), dtype=x.dtype, memory_format=torch.channels_last)
    stats, stats2 = (torch.empty(4, chans) if pair else None for pair in (norm, norm2))
    z = torch.empty_like(y) if norm2 else None
    affine, affine2 = (
        [t.float().contiguous() for t in pair] if pair else [None, None] for pair in (norm, norm2)
    )
    filters = taps.float().contiguous()
    _library().dwsep_norm_act_depthwise(
        *_pointers(x, y, z, *affine, filters, *affine2, stats, stats2),
        *(images, chans, *size, *image),
        *_settings(x, how, shape, how2),
    )
    return y, z, stats, stats2


def _backward(
    grad: Tensor,
    x: Tensor,
    grad_x: Tensor | None,
    taps: Tensor,
    stats: Tensor | None,
    how: tuple[float, str],
    shape: tuple[int, int],
    y: Tensor | None = None,
    stats2: Tensor | None = None,
    how2: tuple[float, str] = (0.0, "identity"),
) -> tuple[tuple[Tensor, Tensor], Tensor, tuple[Tensor, Tensor]]:
    """Return the gradients of the first norm, ``taps`` and the second norm.

    The gradient of ``x`` is written to ``grad_x``. Without statistics a norm is absent, and its
    gradients are meaningless.
    """
    grad, (images, chans, *size) = _like(grad, x), x.shape
    filters = taps.float().contiguous()
    grad_taps = torch.empty_like(filters)
    weight, bias, weight2, bias2 = torch.empty(4, chans).unbind()
    # SILU's slope is too expensive to compute twice: is_kept in native.cpp.
    kept = torch.empty_like(grad) if how2[1] == "silu" else None
    _library().dwsep_norm_act_depthwise_backward(
        *_pointers(grad, x, y, kept, filters, stats, stats2),
        *_pointers(grad_x, weight, bias, grad_taps, weight2, bias2),
        *(images, chans, *size, *grad.shape[2:]),
        *_settings(x, how, shape, how2),
    )
    return (weight, bias), grad_taps, (weight2, bias2)


def _settings(
    x: Tensor, how: tuple[float, str], shape: tuple[int, int], how2: tuple[float, str]
) -> list[float]:
    """Return the last arguments of the convolution functions."""
    (eps, act), (eps2, act2) = how, how2
    acts = (ACTIVATIONS.index(act), ACTIVATIONS.index(act2))
    return [eps, eps2, *shape, x.dtype is torch.bfloat16, *acts, torch.get_num_threads()]


def _library() -> ctypes.CDLL:
    library = native().library
    assert library is not None, "covers() was not asked"
    return library


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _like(grad: Tensor, x: Tensor) -> Tensor:
    return grad.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _compiler() -> list[str] | None:
    """Return the compiler's command; ``CXX`` may contain arguments."""
    for name in (os.environ.get("CXX", ""), "g++", "c++"):
        with contextlib.suppress(ValueError):  # an unterminated quote
            words = shlex.split(name)
            if words and shutil.which(words[0]):
                return words
    return None


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _library_of(compiler: list[str], version: str) -> ctypes.CDLL:
    """Load the library of this processor from the cache, or compile it."""
    flag = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
    # PyTorch ships OpenMP. A second one would run its own threads on the same cores.
    openmp = sorted(map(str, (Path(torch.__file__).parent / "lib").glob("libgomp*.so*")))
    options = ["-std=c++17", "-O3", flag, "-shared", "-fPIC", "-w", "-fopenmp"]
    command = [*compiler, *options, str(SOURCE), *openmp, "-Wl,--as-needed"]
    processor = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    features = [line for line in processor.splitlines() if line.startswith(("model", "flags", "F"))]
    parts = [SOURCE.read_text(encoding="utf-8"), version, *command, *features]
    name = f"native-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"
    folder = cache_folder()
    with contextlib.suppress(OSError):  # missing or damaged
        if folder is not None:
            return ctypes.CDLL(str(folder / name))
    with tempfile.TemporaryDirectory(dir=folder) as new:
        path = Path(new, name)
        subprocess.run([*command, "-o", str(path)], capture_output=True, text=True, check=True)
        if folder is not None:  # replace atomically
            path = path.replace(folder / name)
        return ctypes.CDLL(str(path))
