"""The kernels of ``native.cpp``, compiled for this processor at first use.

Compilation takes up to half a minute and a C++ compiler, which ``torch.compile`` needs too. The
library is stored in the user's cache. Its vectors are as long as the processor's: emulating longer
ones makes the kernels slower than PyTorch's. With AVX-512, layers of 8 to 15 channels have a
library of their own. Without a compiler, PyTorch's operators compute everything, with detours
around the slowest ones (:mod:`dwsep_zoo.ops.cpu`), and :func:`status` reports it in the log of
every training on a CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from dwsep_zoo.files import cache_folder
from dwsep_zoo.ops.fusion import Depthwise, Fusion, Norm
from dwsep_zoo.ops.ranks import ADD, Addition

log = logging.getLogger("dwsep_zoo")

SOURCE = Path(__file__).with_name("native.cpp")
INSTALL = "install g++, or name one in the variable CXX"
LANES = {"AVX512": (16, 8), "AVX2": (8,)}.get(torch.backends.cpu.get_cpu_capability(), (4,))
"""Channels of the vectors of each library, longest first; a layer must fill one vector."""
ACTIVATIONS = ("identity", "relu", "relu6", "hard_swish", "silu")
"""Activations in the order of their numbers in ``native.cpp``."""
KERNEL_SIZES = (3, 5, 7)
STRIDES = (1, 2)

_POINTER, _LONG, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_double
_SIGNATURES = {
    "dwsep_norm_act": [*[_POINTER] * 5, _LONG, _LONG, _DOUBLE, *[_INT] * 3, ADD],
    "dwsep_update_running": [*[_POINTER] * 4, _DOUBLE, _LONG, _LONG],
    "dwsep_norm_act_backward": [*[_POINTER] * 6, _LONG, _LONG, _DOUBLE, *[_INT] * 3, ADD],
    "dwsep_depthwise_backward": [*[_POINTER] * 5, *[_LONG] * 6, *[_INT] * 5],
    "dwsep_norm_act_depthwise": [
        *[_POINTER] * 10,
        *[_LONG] * 6,
        *[_DOUBLE] * 2,
        *[_INT] * 6,
        *[ADD] * 2,
    ],
    "dwsep_norm_act_depthwise_backward": [
        *[_POINTER] * 13,
        *[_LONG] * 6,
        *[_DOUBLE] * 2,
        *[_INT] * 6,
        *[ADD] * 2,
    ],
}


@dataclass(frozen=True)
class Native:
    """The compiled library or ``None``, and a short reason."""

    library: ctypes.CDLL | None
    why: str


@cache
def native(lanes: int = LANES[0]) -> Native:
    """Load the library whose vectors have ``lanes`` channels, or compile it for the cache."""
    if platform.system() != "Linux":
        return Native(None, f"not for {platform.system()}")
    compiler = _compiler()
    if compiler is None:
        return Native(None, f"no C++ compiler; {INSTALL}")
    try:
        version = _output(*compiler, "--version").partition("\n")[0]
        if "clang" in version:  # its own OpenMP would add threads to PyTorch's
            return Native(None, f"not by {version}; {INSTALL}")
        library = _library_of(compiler, version, lanes)
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
        and x.shape[1] >= LANES[-1]
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


def covers_fusion(x: Tensor, fusion: Fusion) -> bool:
    """Whether :func:`forward` and :func:`backward` support these arguments; ``x``: their input."""
    norm, conv, norm2, expand = fusion
    if conv is None or expand is not None:
        return expand is None and covers(x)
    # With two images a channel has more than one value behind the convolution, at any image size.
    several = norm2.weight is None or (norm.weight is not None and len(x) > 1)
    return conv.taps.shape[-1] == 3 and several and covers_depthwise(x, *conv)


def forward(x: Tensor, fusion: Fusion) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Compute some layers, see ``_Kernels`` in :mod:`.norm`.

    The values between a norm and the convolution are not rounded to the type of ``x``.
    """
    norm, conv, norm2, _ = fusion
    chans = x.shape[1]
    stats, stats2 = (None if n.weight is None else torch.empty(4, chans) for n in (norm, norm2))
    affine, affine2 = ([t if t is None else _float32(t) for t in n[:2]] for n in (norm, norm2))
    if conv is None:
        y, addition = torch.empty_like(x), Addition(norm.synced)
        _library(x).dwsep_norm_act(
            *_pointers(x, y, *affine, stats),
            *(x.numel() // chans, chans, norm.eps, *_acts(x, norm), *addition.pointers),
        )
    else:
        size = [(n + 2 * conv.padding - 3) // conv.stride + 1 for n in x.shape[2:]]
        shape = (len(x), chans, *size)
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        z = None if stats2 is None else torch.empty_like(y)
        filters, addition = _float32(conv.taps), Addition(norm.synced, norm2.synced)
        _library(x).dwsep_norm_act_depthwise(
            *_pointers(x, y, z, *affine, filters, *affine2, stats, stats2),
            *(*x.shape, *size, norm.eps, norm2.eps, *conv[1:], *_acts(x, norm, norm2)),
            *addition.pointers,
        )
        if z is not None:
            assert stats is not None
            assert stats2 is not None
            return z, addition.finish(stats, stats2), [y]
    return y, [] if stats is None else addition.finish(stats), []


def backward(
    grad: Tensor, x: Tensor, fusion: Fusion, *kept: Tensor, need_x: bool = True
) -> tuple[Tensor | None, ...]:
    """Return the gradients, see ``_Kernels`` in :mod:`.norm`; ``need_x``: also that of ``x``."""
    norm, conv, norm2, _ = fusion
    chans = x.shape[1]
    grad, grad_x = _like(grad, x), torch.empty_like(x) if need_x else None
    weight, bias, weight2, bias2 = torch.empty(4, chans).unbind()
    stats, stats2, y = (*kept, None, None, None)[:3]
    if conv is None:
        addition = Addition(norm.synced)
        _library(x).dwsep_norm_act_backward(
            *_pointers(grad, x, stats, grad_x, weight, bias),
            *(x.numel() // chans, chans, norm.eps, *_acts(x, norm), *addition.pointers),
        )
        addition.finish()
        return grad_x, weight, bias
    filters = _float32(conv.taps)
    taps = torch.empty_like(filters)
    # SILU's slope is too expensive to compute twice: is_kept in native.cpp.
    slope = torch.empty_like(grad) if norm2.act == "silu" else None
    addition = Addition(norm.synced, norm2.synced)
    _library(x).dwsep_norm_act_depthwise_backward(
        *_pointers(grad, x, y, slope, filters, stats, stats2),
        *_pointers(grad_x, weight, bias, taps, weight2, bias2),
        *(*x.shape, *grad.shape[2:], norm.eps, norm2.eps, *conv[1:], *_acts(x, norm, norm2)),
        *addition.pointers,
    )
    addition.finish()
    of_norm = (None, None) if stats is None else (weight, bias)
    return grad_x, *of_norm, taps, *(() if stats2 is None else (weight2, bias2))


def update_running(
    stats: Tensor, mean: Tensor, var: Tensor, batches: Tensor | None, momentum: float, count: int
) -> None:
    """Update the running statistics of a norm, see ``_Kernels`` in :mod:`.norm`."""
    _library(stats).dwsep_update_running(
        *_pointers(stats, mean, var, batches), momentum, count, stats.shape[1]
    )


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
        fusion = Fusion(conv=Depthwise(weight, stride, padding))
        grad_x, _, _, grad_taps = backward(grad, x, fusion, need_x=need_x)
        assert grad_taps is not None
        return grad_x, grad_weight.copy_(grad_taps)
    grad, filters = _like(grad, x), _float32(weight)
    grad_filters = torch.empty_like(filters)
    grad_x = torch.empty_like(x) if need_x else None
    _library(x).dwsep_depthwise_backward(
        *_pointers(grad, x, filters, grad_x, grad_filters),
        *(*x.shape, *grad.shape[2:]),
        *(weight.shape[-1], stride, padding, x.dtype is torch.bfloat16, torch.get_num_threads()),
    )
    return grad_x, grad_weight.copy_(grad_filters)


def _acts(x: Tensor, *norms: Norm) -> list[int]:
    """Return the last arguments of the functions: type, activations and threads."""
    acts = [ACTIVATIONS.index(norm.act) for norm in norms]
    return [x.dtype is torch.bfloat16, *acts, torch.get_num_threads()]


def _float32(t: Tensor) -> Tensor:
    return t if t.dtype is torch.float32 and t.is_contiguous() else t.float().contiguous()


def _library(x: Tensor) -> ctypes.CDLL:
    """Return the library for the channels of ``x``, its dimension 1."""
    library = native(next(lanes for lanes in LANES if x.shape[1] >= lanes)).library
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


def _library_of(compiler: list[str], version: str, lanes: int) -> ctypes.CDLL:
    """Load the library of this processor from the cache, or compile it."""
    flag = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
    # PyTorch ships OpenMP. A second one would run its own threads on the same cores.
    openmp = sorted(map(str, (Path(torch.__file__).parent / "lib").glob("libgomp*.so*")))
    options = ["-std=c++17", "-O3", flag, "-shared", "-fPIC", "-w", "-fopenmp", f"-DVECTOR={lanes}"]
    command = [*compiler, *options, str(SOURCE), *openmp, "-Wl,--as-needed"]
    processor = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    features = [line for line in processor.splitlines() if line.startswith(("model", "flags", "F"))]
    parts = [SOURCE.read_text(encoding="utf-8"), version, *command, *features]
    name = f"native-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"
    folder = cache_folder()
    with contextlib.suppress(OSError):  # missing or damaged
        if folder is not None:
            return ctypes.CDLL(str(folder / name))
    log.info("compiling the CPU kernels (vectors of %d floats), which takes up to 30 s", lanes)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        path = Path(new, name)
        subprocess.run([*command, "-o", str(path)], capture_output=True, text=True, check=True)
        if folder is not None:  # replace atomically
            path = path.replace(folder / name)
        return ctypes.CDLL(str(path))
