"""Sequences of modules that fuse layers where this is faster and gives the same result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode  # not public

from dwsep_zoo.nn.layers import ACT_MODULES, DepthwiseConv2d, PointwiseConv2d
from dwsep_zoo.ops import (
    act_depthwise,
    batch_norm_act,
    batch_norm_act_depthwise,
    batch_norm_act_depthwise_batch_norm_act,
    expand_norm_act_depthwise,
    plain,
)
from dwsep_zoo.ops.dtype import autocast_dtype
from dwsep_zoo.ops.norm import (
    covers,
    covers_act,
    covers_both_norms,
    covers_depthwise,
    covers_expand,
)

_NAMES = {module: name for name, module in ACT_MODULES.items()}


class Chain(nn.Sequential):
    """A sequence of modules that runs through :func:`chain`."""

    def forward(self, x: Tensor) -> Tensor:
        return chain(x, *self)


def chain(x: Tensor, *modules: nn.Module) -> Tensor:
    """Apply the modules in order, fusing some of them.

    These sequences are fused in training, also across the boundary of two blocks:

    * a norm and an activation: :func:`~dwsep_zoo.ops.batch_norm_act`;
    * these and a depthwise 3 x 3 convolution, on a GPU also 5 x 5:
      :func:`~dwsep_zoo.ops.batch_norm_act_depthwise`;
    * on a CPU, these and another norm and activation:
      :func:`~dwsep_zoo.ops.batch_norm_act_depthwise_batch_norm_act`;
    * on a CPU, an activation and a depthwise convolution: :func:`~dwsep_zoo.ops.act_depthwise`;
    * on a GPU, an expansion, norm, activation and depthwise convolution:
      :func:`~dwsep_zoo.ops.expand_norm_act_depthwise`.

    All other modules, and modules with hooks, are called one by one.
    """
    if not _may_fuse(x):
        for module in modules:
            x = module(x)
        return x
    steps = [*_flat(modules)]
    while steps:
        module = steps.pop(0)
        y = _at_once(x, module, steps)
        x = module(x) if y is None else y
    return x


def _at_once(x: Tensor, module: nn.Module, behind: list[nn.Module]) -> Tensor | None:
    """Apply the module and the modules that fuse with it, which are removed from ``behind``."""
    if _is_normalised(module, x, x.shape[1]) and covers(x):
        return _normalise(x, module, behind)
    if _is_activation(module):
        return _activate(x, module, behind)
    if _is_expansion(module, x):
        return _expand(x, module, behind)
    return None


def _normalise(x: Tensor, norm: nn.BatchNorm2d, behind: list[nn.Module]) -> Tensor:
    """Apply the norm with as many of activation, depthwise convolution and its norm as follow."""
    inputs = (x, norm.weight, norm.bias, norm.eps, _take_activation(behind))
    if not (
        behind
        and _is_depthwise(conv := behind[0], x)
        and covers_depthwise(x, *(convolution := _arguments(conv)))
    ):
        y, stats = batch_norm_act(*inputs)
    elif (
        len(behind) > 1
        and _is_normalised(norm2 := behind[1], x, conv.out_channels)
        and covers_both_norms(x, *convolution)
    ):
        del behind[:2]
        y, stats, stats2 = batch_norm_act_depthwise_batch_norm_act(
            *(*inputs, *convolution),
            *(norm2.weight, norm2.bias, norm2.eps, _take_activation(behind)),
        )
        _update(norm, stats, x.numel() // x.shape[1])  # first, as both may be one module
        _update(norm2, stats2, y.numel() // y.shape[1])
        return y
    else:
        del behind[0]
        y, stats = batch_norm_act_depthwise(*inputs, *convolution)
    _update(norm, stats, x.numel() // x.shape[1])
    return y


def _arguments(conv: DepthwiseConv2d) -> tuple[Tensor, int, int]:
    """Return weight, stride and padding."""
    return conv.weight, conv.stride[0], int(conv.padding[0])


def _take_activation(behind: list[nn.Module]) -> str:
    """Remove an activation from ``behind`` and return its name, else ``identity``."""
    return _NAMES[type(behind.pop(0))] if behind and _is_activation(behind[0]) else "identity"


def _activate(x: Tensor, act: nn.Module, behind: list[nn.Module]) -> Tensor | None:
    """Apply activation and depthwise convolution, if the latter follows."""
    if not (
        behind
        and _is_depthwise(conv := behind[0], x)
        and (x.requires_grad or conv.weight.requires_grad)
        and covers_act(x, *_arguments(conv))
    ):
        return None
    del behind[0]
    return act_depthwise(x, _NAMES[type(act)], *_arguments(conv))


def _expand(x: Tensor, expand: PointwiseConv2d, behind: list[nn.Module]) -> Tensor | None:
    """Apply expansion, norm, activation and depthwise convolution, if they follow."""
    act = _NAMES[type(behind[1])] if len(behind) > 1 and _is_activation(behind[1]) else "identity"
    number = 2 if act == "identity" else 3
    if not (
        len(behind) >= number
        and _is_normalised(norm := behind[0], x, expand.out_channels)
        and _is_depthwise(conv := behind[number - 1], x)
        and covers_expand(x, expand.weight, *_arguments(conv))
    ):
        return None
    del behind[:number]
    y, stats = expand_norm_act_depthwise(
        *(x, expand.weight, norm.weight, norm.bias, norm.eps, act), *_arguments(conv)
    )
    _update(norm, stats, x.numel() // x.shape[1])
    return y


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
