"""A sequence of layers, of which one kernel computes several at once where it can."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dwsep_zoo.nn.synced import is_synced
from dwsep_zoo.ops import Depthwise, Fusion, Norm, fused, native
from dwsep_zoo.ops.dtype import autocast_dtype
from dwsep_zoo.ops.norm import covers, update_running


class Layer(NamedTuple):
    """A layer of a chain: a norm, an activation, a norm with its activation, or a convolution."""

    name: str
    call: Callable[[Tensor], Tensor]  # computes it by itself
    norm: nn.BatchNorm2d | None = None
    act: str | None = None  # a key of dwsep_zoo.ops.norm.ACTS
    depthwise: nn.Conv2d | None = None
    pointwise: nn.Conv2d | None = None


class _Candidate(NamedTuple):
    """Layers that one kernel might compute."""

    names: tuple[str, ...]
    expand: nn.Conv2d | None
    norm: nn.BatchNorm2d | None
    act: str
    conv: nn.Conv2d | None = None
    norm2: nn.BatchNorm2d | None = None
    act2: str = "identity"


class Notes(NamedTuple):
    """Names of layers that were computed at once, and of others with the reason."""

    fused: list[tuple[str, ...]]
    left: dict[str, str]


class Chain(nn.Module):
    """Applies layers in order, several at once where a kernel covers them.

    In training, these are fused, also across the boundary of two blocks:

    * a norm and an activation;
    * these and a depthwise 3 x 3 convolution, on a GPU also 5 x 5;
    * on a CPU, these and another norm and activation;
    * on a CPU, an activation and a depthwise convolution;
    * on a GPU, an expansion, norm, activation and depthwise convolution.

    The layers stay modules of their network: this module owns no parameters.
    """

    def __init__(self, layers: Sequence[Layer]):
        super().__init__()
        self.layers = list(layers)
        self.candidates = [list(_candidates(layers, at)) for at in range(len(layers))]
        self.paths: dict[Hashable, list[_Part]] = {}
        """The parts by kind of input, while the layers' tensors stay as they are."""
        self.notes: Notes | None = None
        """Where the next forward pass notes what it does; ``None``: nowhere."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # the compiler fuses by itself
            for layer in self.layers:
                x = layer.call(x)
            return x
        key = x.shape, x.stride(), x.dtype, x.device, x.requires_grad, autocast_dtype(x)
        path = self.paths.get(key)
        if path is None or self.notes is not None:
            x, self.paths[key] = self._find(x)
            return x
        for part in path:
            x = part.compute(x)
        return x

    def _find(self, x: Tensor) -> tuple[Tensor, list[_Part]]:
        """Compute the layers, and return how that was done, too."""
        at, path = 0, []
        while at < len(self.layers):
            layer, count = self.layers[at], 1
            part = _Part(layer.call, None, ())
            for candidate in self.candidates[at]:
                if (fusion := _fusion(x, candidate)) is not None and covers(x, fusion):
                    norms = tuple(n for n in (candidate.norm, candidate.norm2) if n is not None)
                    part, count = _Part(layer.call, fusion, norms), len(candidate.names)
                    break
            if self.notes is not None and part.fusion is not None:
                self.notes.fused.append(candidate.names)
            elif self.notes is not None and (layer.norm or layer.depthwise):
                self.notes.left[layer.name] = _why_not(x, layer)
            x = part.compute(x)
            path.append(part)
            at += count
        return x, path


class _Part(NamedTuple):
    """A layer, or several that a kernel computes."""

    call: Callable[[Tensor], Tensor]
    fusion: Fusion | None
    norms: tuple[nn.BatchNorm2d, ...]  # of the fusion

    def compute(self, x: Tensor) -> Tensor:
        if self.fusion is None:
            return self.call(x)
        y, moments = fused(x, self.fusion)
        for norm, stats, like in zip(self.norms, moments, (x, y), strict=False):
            mean, var, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
            count = like.numel() // like.shape[1] if len(stats) == 4 else int(stats[4, 0])
            assert mean is not None and var is not None and norm.momentum is not None  # noqa: PT018
            update_running(stats, mean, var, batches, norm.momentum, count)
        return y


def _candidates(layers: Sequence[Layer], at: int) -> Iterator[_Candidate]:
    """The kernels' sequences that begin at a layer, the longest first."""
    expand = layers[at].pointwise
    norm, act, end = _norm_and_act(layers, at + (expand is not None))
    conv = layers[end].depthwise if end < len(layers) else None
    if conv is not None and expand is None and end > at:
        norm2, act2, end2 = _norm_and_act(layers, end + 1)
        if norm2 is not None:
            yield _Candidate(_names(layers[at:end2]), None, norm, act, conv, norm2, act2)
    if conv is not None and end > at and (expand is None or norm is not None):
        yield _Candidate(_names(layers[at : end + 1]), expand, norm, act, conv)
    if norm is not None and expand is None:
        yield _Candidate(_names(layers[at:end]), None, norm, act)


def _names(layers: Sequence[Layer]) -> tuple[str, ...]:
    return tuple(layer.name for layer in layers)


def _norm_and_act(layers: Sequence[Layer], at: int) -> tuple[nn.BatchNorm2d | None, str, int]:
    """Read a norm and an activation, either may be missing; also return the index after them."""
    norm, act = None, None
    if at < len(layers) and layers[at].norm is not None:
        norm, act = layers[at].norm, layers[at].act
        at += 1
    if act is None and at < len(layers) and layers[at].norm is None:
        act = layers[at].act
        at += act is not None
    return norm, act or "identity", at


def _fusion(x: Tensor, candidate: _Candidate) -> Fusion | None:
    """The kernel's arguments, or ``None`` if a layer computes otherwise than the kernel does."""
    _, expand, norm, act, conv, norm2, act2 = candidate
    chans = x.shape[1] if expand is None else expand.out_channels
    if norm is not None and not _normalises(norm, x, chans):
        return None
    if norm2 is not None and not _normalises(norm2, x, chans):
        return None
    if any(c is not None and not _convolves(c, x) for c in (expand, conv)):
        return None
    leaves = [x, *(m.weight for m in (norm, conv) if m is not None)]
    if not any(leaf.requires_grad for leaf in leaves):
        return None
    return Fusion(
        _norm(norm, act),
        None if conv is None else Depthwise(conv.weight, conv.stride[0], int(conv.padding[0])),
        _norm(norm2, act2),
        None if expand is None else expand.weight,
    )


def _norm(norm: nn.BatchNorm2d | None, act: str) -> Norm:
    if norm is None:
        return Norm(act=act)
    return Norm(norm.weight, norm.bias, norm.eps, act, is_synced(norm))


def _normalises(norm: nn.BatchNorm2d, x: Tensor, chans: int) -> bool:
    """Whether ``norm`` normalises ``chans`` channels with the batch's own statistics."""
    return (
        norm.training
        and norm.momentum is not None
        and _is_usual(norm.running_mean, x)
        and _is_usual(norm.running_var, x)
        and norm.num_features == chans
        and _is_usual(norm.weight, x)
        and _is_usual(norm.bias, x)
        and x.numel() > x.shape[1]
    )


def _convolves(conv: nn.Conv2d, x: Tensor) -> bool:
    return conv.bias is None and _is_usual(conv.weight, x) and autocast_dtype(x) is x.dtype


def _is_usual(parameter: Tensor | None, x: Tensor) -> bool:
    return (
        parameter is not None
        and parameter.dtype is torch.float32
        and parameter.device == x.device
        and parameter.is_contiguous()
    )


def _why_not(x: Tensor, layer: Layer) -> str:
    """Why no kernel computes a norm or a depthwise convolution together with its neighbours."""
    norm, conv = layer.norm, layer.depthwise
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"input in {str(x.dtype).removeprefix('torch.')}"
    if not x.is_contiguous(memory_format=torch.channels_last):
        return "input not in channels_last"
    if norm is not None and not _normalises(norm, x, x.shape[1]):
        return "norm without the batch's statistics, float32 weights or running means"
    if conv is not None and not _convolves(conv, x):
        return "bias, weights not in float32, or an input that autocast casts"
    if conv is not None and conv.kernel_size[0] != 3:
        return f"{conv.kernel_size[0]} x {conv.kernel_size[0]} kernel"
    if x.device.type == "cpu" and not native.is_ready():
        return f"no kernels: {native.native().why}"
    if x.device.type != "cpu" and norm is not None and is_synced(norm):
        return "statistics of several processes"
    if x.shape[1] < native.LANES[-1]:
        return f"{x.shape[1]} channels, fewer than {native.LANES[-1]}"
    return "no norm or activation before it, or no kernel for its shape"
