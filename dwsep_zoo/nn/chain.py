"""Sequences of modules that fuse layers where this is faster and gives the same result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode  # not public

from dwsep_zoo.nn.layers import ACT_MODULES, DepthwiseConv2d, PointwiseConv2d
from dwsep_zoo.ops import Depthwise, Fusion, Norm, fused, plain
from dwsep_zoo.ops.dtype import autocast_dtype
from dwsep_zoo.ops.norm import covers

_NAMES = {module: name for name, module in ACT_MODULES.items()}


class Chain(nn.Sequential):
    """A sequence of modules that runs through :func:`chain`."""

    def forward(self, x: Tensor) -> Tensor:
        return chain(x, *self)


def chain(x: Tensor, *modules: nn.Module) -> Tensor:
    """Apply the modules in order, fusing some of them.

    These sequences are fused in training, also across the boundary of two blocks:

    * a norm and an activation;
    * these and a depthwise 3 x 3 convolution, on a GPU also 5 x 5;
    * on a CPU, these and another norm and activation;
    * on a CPU, an activation and a depthwise convolution;
    * on a GPU, an expansion, norm, activation and depthwise convolution.

    All other modules, and modules with hooks, are called one by one.
    """
    if not _may_fuse(x):
        for module in modules:
            x = module(x)
        return x
    steps = [*_flat(modules)]
    while steps:
        y = _fuse(x, steps)
        x = steps.pop(0)(x) if y is None else y
    return x


def _fuse(x: Tensor, steps: list[nn.Module]) -> Tensor | None:
    """Apply as many of the first modules as one kernel computes, and remove them from ``steps``."""
    expand = steps[0] if _is_expansion(steps[0], x) else None
    chans = x.shape[1] if expand is None else expand.out_channels
    norm, own, end = _norm_and_act(steps, 0 if expand is None else 1, x, chans)
    found: list[tuple[Fusion, list[nn.BatchNorm2d], int]] = []  # longest last
    if own and expand is None:
        found.append((Fusion(norm), own, end))
    if end and end < len(steps) and _is_depthwise(module := steps[end], x):
        conv = Depthwise(module.weight, module.stride[0], int(module.padding[0]))
        weight = None if expand is None else expand.weight
        if own or x.requires_grad or module.weight.requires_grad:
            found.append((Fusion(norm, conv, expand=weight), own, end + 1))
        if own and expand is None:
            norm2, own2, end2 = _norm_and_act(steps, end + 1, x, module.out_channels)
            if own2:
                found.append((Fusion(norm, conv, norm2), [*own, *own2], end2))
    for fusion, norms, count in reversed(found):
        if covers(x, fusion):
            del steps[:count]
            y, moments = fused(x, fusion)
            for module, stats, like in zip(norms, moments, (x, y), strict=False):
                _update(module, stats, like.numel() // like.shape[1])
            return y
    return None


def _norm_and_act(
    steps: list[nn.Module], at: int, x: Tensor, chans: int
) -> tuple[Norm, list[nn.BatchNorm2d], int]:
    """Read a norm and an activation, from ``at`` on; also return the norm and the index after."""
    norm, norms = Norm(), []
    if at < len(steps) and _is_normalised(module := steps[at], x, chans):
        norm, norms = Norm(module.weight, module.bias, module.eps), [module]
        at += 1
    if at < len(steps) and _is_activation(steps[at]):
        return norm._replace(act=_NAMES[type(steps[at])]), norms, at + 1
    return norm, norms, at


def _flat(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield the modules of nested sequences; a sequence with hooks stays whole."""
    for module in modules:
        if type(module).forward in (Chain.forward, nn.Sequential.forward) and not is_heard(module):
            yield from _flat(module.children())
        elif type(module) is not nn.Identity or is_heard(module):
            yield module


def _may_fuse(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # the compiler fuses by itself
        and not plain(x)
        and type(x) is Tensor
        and x.device.type in ("cpu", "cuda")
        and torch.is_grad_enabled()
    )


def _is_activation(act: nn.Module) -> bool:
    return type(act) in _NAMES and not is_heard(act)


def _is_normalised(norm: nn.Module, x: Tensor, chans: int) -> TypeGuard[nn.BatchNorm2d]:
    """Whether ``norm`` normalises ``chans`` channels with the batch's own statistics."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.momentum is not None
        and norm.running_mean is not None
        and norm.num_features == chans
        and all(_is_usual(t, x) for t in (norm.weight, norm.bias))
        and (x.requires_grad or norm.weight.requires_grad)
        and not is_heard(norm)
        and x.numel() > x.shape[1]
    )


def _is_depthwise(conv: nn.Module, x: Tensor) -> TypeGuard[DepthwiseConv2d]:
    return (
        type(conv) is DepthwiseConv2d
        and not conv.same
        and conv.bias is None
        and _is_usual(conv.weight, x)
        and autocast_dtype(x) is x.dtype
        and not is_heard(conv)
        and not is_in_torch_dispatch_mode()  # a dispatch mode counts the convolutions
    )


def _is_expansion(conv: nn.Module, x: Tensor) -> TypeGuard[PointwiseConv2d]:
    return (
        type(conv) is PointwiseConv2d
        and conv.bias is None
        and _is_usual(conv.weight, x)
        and autocast_dtype(x) is x.dtype
        and not is_heard(conv)
    )


def _is_usual(parameter: Tensor | None, x: Tensor) -> bool:
    return (
        parameter is not None
        and parameter.dtype is torch.float32
        and parameter.device == x.device
        and parameter.is_contiguous()
    )


def is_heard(module: nn.Module) -> bool:
    """Whether a hook observes this module, or it is compiled."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
        nn.modules.module._global_forward_hooks,
        nn.modules.module._global_forward_pre_hooks,
        nn.modules.module._global_backward_hooks,
        nn.modules.module._global_backward_pre_hooks,
    )
    return any(hooks) or module._compiled_call_impl is not None


@torch.no_grad()
def _update(norm: nn.BatchNorm2d, stats: Tensor, count: int) -> None:
    """Update running statistics as ``nn.BatchNorm2d`` does, with the unbiased variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    if stats.is_cuda:
        from dwsep_zoo.ops import triton_norm  # import Triton only if there is a GPU

        running = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
        triton_norm.update_running(stats, *running, norm.momentum, count)
        return
    mean, var = stats
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * (count / (count - 1)), norm.momentum)
