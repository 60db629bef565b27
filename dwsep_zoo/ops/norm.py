"""Batch normalisation fused with the layers after it, for training.

On the CPU, PyTorch's operators take several times as long as their memory traffic requires: almost
a third of MobileNetV1's step in bfloat16. The kernels here are limited by memory (``native.cpp``).
The norm's pass includes the activation. A depthwise convolution after them computes both as it
reads, so the intermediate tensor is neither written, read nor kept for the backward pass. NVIDIA
GPUs have Triton kernels for this (``triton_norm.py``), also including the expansion before the norm
(``triton_expand.py``). The transforms of ``torch.func`` do not support these operations.
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
    """Whether :func:`batch_norm_act` supports this input."""
    return _kernels(x).covers(x)


def covers_depthwise(x: Tensor, taps: Tensor, stride: int, padding: int) -> bool:
    """Whether :func:`batch_norm_act_depthwise` supports these arguments."""
    return _kernels(x).covers_norm_act_depthwise(x, taps, stride, padding)


def covers_act(x: Tensor, taps: Tensor, stride: int, padding: int) -> bool:
    """Whether :func:`act_depthwise` supports these arguments; a GPU has no such kernel."""
    return _kernels(x) is native and covers_depthwise(x, taps, stride, padding)


def covers_both_norms(x: Tensor, taps: Tensor, stride: int, padding: int) -> bool:
    """Whether :func:`batch_norm_act_depthwise_batch_norm_act` does; a GPU has no such kernel."""
    # With two images a channel has more than one value, at any image size.
    return covers_act(x, taps, stride, padding) and x.shape[0] > 1


def covers_expand(x: Tensor, expand: Tensor, taps: Tensor, stride: int, padding: int) -> bool:
    """Whether :func:`expand_norm_act_depthwise` supports these arguments and is faster."""
    kernels = _expansion_kernels(x)
    return kernels is not None and kernels.covers(x, expand, taps, stride, padding)


def batch_norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, act: str
) -> tuple[Tensor, Tensor]:
    """``act(batch_norm(x))`` with the batch's own statistics.

    Args:
        x: ``(N, C, H, W)`` for which :func:`covers` is true.
        weight: ``(C,)`` float32.
        bias: ``(C,)`` float32, added last before the activation.
        eps: added to the variance.
        act: a key of :data:`ACTS`.

    Returns:
        A tensor like ``x``, and ``(2, C)`` float32: mean and biased variance, which autograd treats
        as constants.
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
        if torch.is_grad_enabled():  # second derivatives: use PyTorch's operators
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
    """:func:`batch_norm_act`, then a depthwise convolution with ``taps``.

    ``taps``: ``(C, 1, k, k)`` float32. :func:`covers_depthwise` must be true of the arguments.
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
    """Activate and convolve depthwise; :func:`covers_act` must be true of the arguments."""
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
    """:func:`batch_norm_act_depthwise`, then :func:`batch_norm_act`.

    :func:`covers_both_norms` must be true of the arguments.

    Returns:
        The output, and mean and variance of both norms.
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
    """A 1 x 1 convolution with the weight ``expand``, then :func:`batch_norm_act_depthwise`.

    Factors are rounded to the type of ``x``, as autocast does. :func:`covers_expand` must be true
    of the arguments.
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
    """Norm and activation with PyTorch's operators."""
    return ACTS[act](F.batch_norm(x, None, None, weight, bias, True, 0.0, eps))


def _by_layers(x: Tensor, weight: Tensor, bias: Tensor, taps: Tensor, ctx: Any) -> Tensor:
    """Norm, activation and depthwise convolution with PyTorch's operators."""
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
    """Return differentiable gradients of the leaves; ``again`` recomputes the output from them."""
    # One tensor may be two of the leaves, and each needs its own gradient.
    apart = [leaf.view_as(leaf) for leaf in leaves]
    needed = [leaf for leaf in apart if leaf.requires_grad]
    found = iter(torch.autograd.grad(again(*apart), needed, grad, create_graph=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


class _Kernels(Protocol):
    """The kernels of a device."""

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
        from dwsep_zoo.ops import triton_norm  # import Triton only if there is a GPU

        return triton_norm
    return native


def _expansion_kernels(x: Tensor) -> Any:
    """Return ``None`` if fusing the expansion is not faster."""
    if x.is_cuda:
        from dwsep_zoo.ops import triton_expand

        return triton_expand
    return None
