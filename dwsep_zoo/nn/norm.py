"""Norm and activation, computed at once where there is a way that is faster and equal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dwsep_zoo.ops import batch_norm_act, native, plain

ACT_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard_swish": nn.Hardswish,
    "silu": nn.SiLU,
}
"""By the names that :data:`dwsep_zoo.ops.norm.ACTS` has, too."""

_NAMES: dict[type[nn.Module] | None, str] = {
    None: "identity",
    **{module: name for name, module in ACT_MODULES.items()},
}


class NormAct(nn.Sequential):
    """A norm and an activation, called ``0`` and ``1``."""

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(x, *self)


class Normed(nn.Sequential):
    """Modules that end with ``norm`` or with ``norm`` and ``act``, by these names."""

    def forward(self, x: Tensor) -> Tensor:
        children = [*self.named_children()]
        ends = [i for i, (name, _) in enumerate(children) if name == "norm"]
        end = ends[0] if ends else len(children)  # a slice may have none
        for _, module in children[:end]:
            x = module(x)
        return norm_act(x, *(module for _, module in children[end:])) if ends else x


def norm_act(x: Tensor, norm: nn.Module, act: nn.Module | None = None) -> Tensor:
    """``act(norm(x))``: in training on the CPU by :func:`~dwsep_zoo.ops.batch_norm_act`.

    Whatever that does not cover, and modules that somebody listens to, are called one by one.
    """
    kind = _NAMES.get(None if act is None else type(act))
    if kind is not None and type(norm) is nn.BatchNorm2d and _is_fused(x, norm, act):
        y, stats = batch_norm_act(x, norm.weight, norm.bias, norm.eps, kind)
        _update(norm, stats, x.numel() // x.shape[1])
        return y
    x = norm(x)
    return x if act is None else act(x)


def _is_fused(x: Tensor, norm: nn.BatchNorm2d, act: nn.Module | None) -> bool:
    return (
        not torch.compiler.is_compiling()  # the compiler fuses them itself
        and not plain(x)
        and type(x) is Tensor
        and x.device.type == "cpu"
        and norm.training
        and norm.momentum is not None
        and norm.running_mean is not None
        and norm.num_features == x.shape[1]
        and all(_is_usual(t) for t in (norm.weight, norm.bias))
        and torch.is_grad_enabled()
        and (x.requires_grad or norm.weight.requires_grad)
        and not is_heard(norm)
        and not (act is not None and is_heard(act))
        and x.numel() > x.shape[1]
        and native.covers(x)
    )


def _is_usual(parameter: Tensor | None) -> bool:
    return (
        parameter is not None
        and parameter.dtype is torch.float32
        and parameter.device.type == "cpu"
        and parameter.is_contiguous()
    )


def is_heard(module: nn.Module) -> bool:
    """Whether somebody would miss its call."""
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
    return any(hooks)


@torch.no_grad()
def _update(norm: nn.BatchNorm2d, stats: Tensor, count: int) -> None:
    """The running statistics, as ``nn.BatchNorm2d`` does, with the unbiased variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    mean, var = stats
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * (count / (count - 1)), norm.momentum)
