"""Batch normalisation with what is behind it, as one operation in training.

On the CPU PyTorch's own take several times as long as their memory traffic: together almost a third
of MobileNetV1's step in bfloat16. Here a pass is bound by memory (``native.cpp``), the activation
is part of the norm's, and where a depthwise convolution follows, it takes what it needs of both:
what lies between them is neither written nor read nor kept for the backward pass. On NVIDIA GPUs it
is the same with Triton kernels (``triton_norm.py``), also with the expansion in front of them
(``triton_expand.py``). The transforms of ``torch.func`` do not know these operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep_zoo.ops import native

ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "silu": F.silu,
}


def covers(x: Tensor) -> bool:
    """Whether :func:`batch_norm_act` takes this input."""
    return _kernels(x).covers(x)


def covers_depthwise(x: Tensor, taps: Tensor, stride: int, padding: int) -> bool:
    """Whether :func:`batch_norm_act_depthwise` does."""
    return _kernels(x).covers_norm_act_depthwise(x, taps, stride, padding)


def covers_act(x: Tensor, taps: Tensor, stride: int, padding: int) -> bool:
    """Whether :func:`act_depthwise` does, of which a GPU has none."""
    return _kernels(x) is native and covers_depthwise(x, taps, stride, padding)


def covers_both_norms(x: Tensor, taps: Tensor, stride: int, padding: int) -> bool:
    """Whether :func:`batch_norm_act_depthwise_batch_norm_act` does, of which a GPU has none."""
    # Whatever the size of an image, the norm of two has more than one value.
    return covers_act(x, taps, stride, padding) and x.shape[0] > 1


def covers_expand(x: Tensor, expand: Tensor, taps: Tensor, stride: int, padding: int) -> bool:
    """Whether :func:`expand_norm_act_depthwise` does, and is faster than its parts."""
    kernels = _expansion_kernels(x)
    return kernels is not None and kernels.covers(x, expand, taps, stride, padding)


def batch_norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, act: str
) -> tuple[Tensor, Tensor]:
    """``act(batch_norm(x))`` with the batch's own statistics.

    Args:
        x: ``(N, C, H, W)``, one that :func:`covers` is true of.
        weight: ``(C,)`` float32, as ``bias``.
        bias: added last before the activation.
        eps: added to the variance.
        act: a key of :data:`ACTS`.

    Returns:
        What ``x`` is like, and ``(2, C)`` float32, the mean and the biased variance, which are
        constants to autograd.
    """
    y, stats = _NormAct.apply(x, weight, bias, eps, act)
    return y, stats[:2]


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, act: str
    ) -> tuple[Tensor, Tensor]:
        y, stats = _kernels(x).norm_act(x, weight, bias, eps, act)
        ctx.eps, ctx.act = eps, act
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.mark_non_differentiable(stats)
        return y, stats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, stats = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives are wanted, which PyTorch's own have
            again = partial(_norm_act, eps=ctx.eps, act=ctx.act)
            return (*_grads(again, (x, weight, bias), grad), None, None)
        grads = _kernels(x).norm_act_backward(grad, x, stats, ctx.eps, ctx.act)
        return (*grads, None, None)


def batch_norm_act_depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    act: str,
    taps: Tensor,
    stride: int,
    padding: int,
) -> tuple[Tensor, Tensor]:
    """:func:`batch_norm_act` and a depthwise convolution, whose weight is ``taps``.

    That is ``(C, 1, k, k)`` float32. All of it is what :func:`covers_depthwise` is true of.
    """
    y, stats = _NormActDepthwise.apply(x, weight, bias, eps, act, taps, stride, padding)
    return y, stats[:2]


class _NormActDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        act: str,
        taps: Tensor,
        stride: int,
        padding: int,
    ) -> tuple[Tensor, Tensor]:
        kernels = _kernels(x)
        y, stats = kernels.norm_act_depthwise(x, weight, bias, taps, eps, act, stride, padding)
        ctx.eps, ctx.act, ctx.shape = eps, act, (stride, padding)
        ctx.save_for_backward(x, weight, bias, taps, stats)
        ctx.mark_non_differentiable(stats)
        return y, stats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *leaves, stats = ctx.saved_tensors
        x, _, _, taps = leaves
        if torch.is_grad_enabled():
            again = partial(_by_layers, ctx=ctx)
            of_x, of_weight, of_bias, of_taps = _grads(again, leaves, grad)
        else:
            of_x, of_weight, of_bias, of_taps = _kernels(x).norm_act_depthwise_backward(
                grad, x, taps, stats, ctx.eps, ctx.act, *ctx.shape
            )
        return of_x, of_weight, of_bias, None, None, of_taps, None, None


def act_depthwise(x: Tensor, act: str, taps: Tensor, stride: int, padding: int) -> Tensor:
    """An activation and a depthwise convolution; takes what :func:`covers_act` is true of."""
    return _ActDepthwise.apply(x, act, taps, stride, padding)


class _ActDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, act: str, taps: Tensor, stride: int, padding: int) -> Tensor:
        ctx.act, ctx.shape = act, (stride, padding)
        ctx.save_for_backward(x, taps)
        return native.act_depthwise(x, taps, act, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps = leaves = ctx.saved_tensors
        grads: Sequence[Tensor | None]
        if torch.is_grad_enabled():
            grads = _grads(lambda x, taps: _depthwise(ACTS[ctx.act](x), taps, ctx), leaves, grad)
        else:
            grads = native.act_depthwise_backward(grad, x, taps, ctx.act, *ctx.shape)
        of_x, of_taps = grads
        return of_x, None, of_taps, None, None


def batch_norm_act_depthwise_batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    act: str,
    taps: Tensor,
    stride: int,
    padding: int,
    weight2: Tensor,
    bias2: Tensor,
    eps2: float,
    act2: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`batch_norm_act_depthwise` and :func:`batch_norm_act` behind it.

    Takes what :func:`covers_both_norms` is true of.

    Returns:
        What the latter does, and the mean and variance of both norms.
    """
    z, stats, stats2 = _NormActDepthwiseNormAct.apply(
        x, weight, bias, eps, act, taps, stride, padding, weight2, bias2, eps2, act2
    )
    return z, stats[:2], stats2[:2]


class _NormActDepthwiseNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        act: str,
        taps: Tensor,
        stride: int,
        padding: int,
        weight2: Tensor,
        bias2: Tensor,
        eps2: float,
        act2: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        leaves = (x, weight, bias, taps, weight2, bias2)
        ctx.eps, ctx.act, ctx.shape = eps, act, (stride, padding)
        ctx.eps2, ctx.act2 = eps2, act2
        z, y, stats, stats2 = native.norm_act_depthwise_norm_act(
            *leaves, eps, act, stride, padding, eps2, act2
        )
        ctx.save_for_backward(*leaves, y, stats, stats2)
        ctx.mark_non_differentiable(stats, stats2)
        return z, stats, stats2

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        *leaves, y, stats, stats2 = ctx.saved_tensors
        x, _, _, taps, _, _ = leaves
        grads: Sequence[Tensor | None]
        if torch.is_grad_enabled():
            grads = _grads(partial(_between_norms, ctx=ctx), leaves, grad)
        else:
            stride, padding = ctx.shape
            grads = native.norm_act_depthwise_norm_act_backward(
                *(grad, x, y, taps, stats, stats2, ctx.eps, ctx.act, stride, padding),
                *(ctx.eps2, ctx.act2),
            )
        of_x, of_weight, of_bias, of_taps, *of_norm2 = grads
        return of_x, of_weight, of_bias, None, None, of_taps, None, None, *of_norm2, None, None


def expand_norm_act_depthwise(
    x: Tensor,
    expand: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    act: str,
    taps: Tensor,
    stride: int,
    padding: int,
) -> tuple[Tensor, Tensor]:
    """A 1 x 1 convolution with the weight ``expand`` and :func:`batch_norm_act_depthwise`.

    What is multiplied is rounded to the type of ``x``, as autocast does. Takes what
    :func:`covers_expand` is true of.
    """
    y, stats = _ExpandNormActDepthwise.apply(
        x, expand, weight, bias, eps, act, taps, stride, padding
    )
    return y, stats[:2]


class _ExpandNormActDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        expand: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        act: str,
        taps: Tensor,
        stride: int,
        padding: int,
    ) -> tuple[Tensor, Tensor]:
        rounded = expand.to(x.dtype)
        y, kept = _expansion_kernels(x).forward(
            x, rounded, weight, bias, taps, eps, act, stride, padding
        )
        ctx.eps, ctx.act, ctx.shape = eps, act, (stride, padding)
        ctx.save_for_backward(x, expand, weight, bias, taps, rounded, *kept)
        ctx.mark_non_differentiable(kept.stats)
        return y, kept.stats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *leaves, rounded = ctx.saved_tensors[:6]
        x, *_, taps = leaves
        if torch.is_grad_enabled():
            grads = _grads(partial(_expanded, ctx=ctx), leaves, grad)
        else:
            kernels = _expansion_kernels(x)
            kept = kernels.Kept(*ctx.saved_tensors[6:])
            grads = kernels.backward(grad, x, rounded, taps, kept, ctx.eps, ctx.act, *ctx.shape)
        of_x, of_expand, of_weight, of_bias, of_taps = grads
        return of_x, of_expand, of_weight, of_bias, None, None, of_taps, None, None


def _norm_act(x: Tensor, weight: Tensor, bias: Tensor, eps: float, act: str) -> Tensor:
    """Norm and activation as PyTorch's own operators."""
    return ACTS[act](F.batch_norm(x, None, None, weight, bias, True, 0.0, eps))


def _by_layers(x: Tensor, weight: Tensor, bias: Tensor, taps: Tensor, ctx: Any) -> Tensor:
    """Norm, activation and depthwise convolution as PyTorch's own operators."""
    return _depthwise(_norm_act(x, weight, bias, ctx.eps, ctx.act), taps, ctx)


def _between_norms(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    taps: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    ctx: Any,
) -> Tensor:
    y = _by_layers(x, weight, bias, taps, ctx)
    return _norm_act(y, weight2, bias2, ctx.eps2, ctx.act2)


def _expanded(
    x: Tensor, expand: Tensor, weight: Tensor, bias: Tensor, taps: Tensor, ctx: Any
) -> Tensor:
    return _by_layers(F.conv2d(x, expand.to(x.dtype)), weight, bias, taps, ctx)


def _depthwise(x: Tensor, taps: Tensor, ctx: Any) -> Tensor:
    stride, padding = ctx.shape
    return F.conv2d(x, taps.to(x.dtype), None, stride, padding, 1, x.shape[1])


def _grads(
    again: Callable[..., Tensor], leaves: Sequence[Tensor], grad: Tensor
) -> list[Tensor | None]:
    """Of those leaves that need one, differentiable; ``again`` computes the output from all."""
    # One tensor may be two of them, and each has a gradient of its own.
    apart = [leaf.view_as(leaf) for leaf in leaves]
    needed = [leaf for leaf in apart if leaf.requires_grad]
    found = iter(torch.autograd.grad(again(*apart), needed, grad, create_graph=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


class _Kernels(Protocol):
    """What there is for a device."""

    def covers(self, x: Tensor) -> bool: ...

    def covers_norm_act_depthwise(
        self, x: Tensor, taps: Tensor, stride: int, padding: int
    ) -> bool: ...

    def norm_act(
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, act: str
    ) -> tuple[Tensor, Tensor]: ...

    def norm_act_backward(
        self, grad: Tensor, x: Tensor, stats: Tensor, eps: float, act: str
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def norm_act_depthwise(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        taps: Tensor,
        eps: float,
        act: str,
        stride: int,
        padding: int,
    ) -> tuple[Tensor, Tensor]: ...

    def norm_act_depthwise_backward(
        self,
        grad: Tensor,
        x: Tensor,
        taps: Tensor,
        stats: Tensor,
        eps: float,
        act: str,
        stride: int,
        padding: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...


def _kernels(x: Tensor) -> _Kernels:
    if x.is_cuda:
        from dwsep_zoo.ops import triton_norm  # Triton is imported where there is a GPU only

        return triton_norm
    return native


def _expansion_kernels(x: Tensor) -> Any:
    """``None`` where an expansion is no faster with what follows it."""
    if x.is_cuda:
        from dwsep_zoo.ops import triton_expand

        return triton_expand
    return None
