"""Batch normalisation fused with the layers around it, for training.

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

from dwsep_zoo.ops import native, ranks
from dwsep_zoo.ops.fusion import Depthwise, Fusion, Norm

ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "silu": F.silu,
}


def covers(x: Tensor, fusion: Fusion) -> bool:
    """Whether the device of ``x`` has a kernel for these layers and this input."""
    return _kernels(x, fusion.expand).covers_fusion(x, fusion)


def fused(x: Tensor, fusion: Fusion) -> tuple[Tensor, list[Tensor]]:
    """Compute several layers at once.

    Args:
        x: ``(N, C, H, W)``.
        fusion: the layers, for which :func:`covers` is true. Autocast rounds the factors of an
            expansion to the type of ``x``.

    Returns:
        The output, in the type of ``x``, and of each norm ``(4, C)`` float32: mean, biased
        variance, and the resulting scale and shift, which autograd treats as constants. If these
        are of several ranks, a fifth row has the count of a channel's values.
    """
    norm, conv, norm2, expand = fusion
    y, *stats = _Fused.apply(
        (norm[2:], conv and conv[1:], norm2[2:]),
        *(x, *norm[:2], conv and conv.taps, *norm2[:2], expand),
    )
    return y, stats


def update_running(
    stats: Tensor, mean: Tensor, var: Tensor, batches: Tensor | None, momentum: float, count: int
) -> None:
    """Update running statistics in place as ``nn.BatchNorm2d`` does, with the unbiased variance.

    Args:
        stats: from :func:`fused`.
        mean: ``(C,)`` float32, the running mean.
        var: likewise, the running variance.
        batches: the number of batches, int64, or ``None``.
        momentum: weight of this batch.
        count: values of a channel, at least 2.
    """
    _kernels(stats, None).update_running(stats, mean, var, batches, momentum, count)


class _Fused(torch.autograd.Function):
    """Autograd needs the tensors one by one; ``how`` holds the rest of the fusion."""

    @staticmethod
    def forward(ctx: Any, how: tuple[Any, ...], *leaves: Tensor | None) -> tuple[Tensor, ...]:
        x, *rest = leaves
        assert x is not None
        fusion = _fusion(how, *rest)
        y, stats, kept = _kernels(x, fusion.expand).forward(x, fusion)
        ctx.how = how
        ctx.save_for_backward(*leaves, *stats, *kept)
        ctx.mark_non_differentiable(*stats)
        return y, *stats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (x, *rest), kept = ctx.saved_tensors[:LEAVES], ctx.saved_tensors[LEAVES:]
        grads: Sequence[Tensor | None]
        if torch.is_grad_enabled():  # second derivatives: use PyTorch's operators
            grads = _grads(partial(_by_layers, ctx.how), (x, *rest), grad)
        else:
            fusion = _fusion(ctx.how, *rest)
            grads = _kernels(x, fusion.expand).backward(grad, x, fusion, *kept)
        return None, *grads, *[None] * (LEAVES - len(grads))


LEAVES = 7  # x, weight, bias, taps, weight2, bias2, expand


def _fusion(
    how: tuple[Any, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    taps: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    expand: Tensor | None,
) -> Fusion:
    norm, conv, norm2 = how
    return Fusion(
        Norm(weight, bias, *norm),
        None if taps is None else Depthwise(taps, *conv),
        Norm(weight2, bias2, *norm2),
        expand,
    )


def _by_layers(how: tuple[Any, ...], x: Tensor, *rest: Tensor | None) -> Tensor:
    """Compute the layers with PyTorch's operators."""
    norm, conv, norm2, expand = _fusion(how, *rest)
    if expand is not None:
        x = F.conv2d(x, expand.to(x.dtype))
    x = _norm_act(x, norm)
    if conv is not None:
        taps, stride, padding = conv
        x = F.conv2d(x, taps.to(x.dtype), None, stride, padding, 1, x.shape[1])
    return _norm_act(x, norm2)


def _norm_act(x: Tensor, norm: Norm) -> Tensor:
    weight, bias, eps, act, synced = norm
    if synced and ranks.several():
        x, *_ = ranks.normalise(x, weight, bias, eps)
    elif weight is not None:
        x = F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    return ACTS[act](x)


def _grads(
    again: Callable[..., Tensor], leaves: Sequence[Tensor | None], grad: Tensor
) -> list[Tensor | None]:
    """Return differentiable gradients of the leaves; ``again`` recomputes the output from them."""
    # One tensor may be two of the leaves, and each needs its own gradient.
    apart = [None if leaf is None else leaf.view_as(leaf) for leaf in leaves]
    needed = [leaf for leaf in apart if leaf is not None and leaf.requires_grad]
    found = iter(torch.autograd.grad(again(*apart), needed, grad, create_graph=True))
    return [next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves]


class _Kernels(Protocol):
    """The kernels of a device."""

    def covers_fusion(self, x: Tensor, fusion: Fusion) -> bool:
        """Whether the other functions support these arguments and are faster than the layers."""

    def forward(self, x: Tensor, fusion: Fusion) -> tuple[Tensor, Sequence[Tensor], Any]:
        """Return the output, the statistics of each norm, and other tensors for ``backward``.

        The statistics are ``(4, C)`` float32: mean, biased variance, and the resulting scale and
        shift.
        """

    def update_running(
        self,
        stats: Tensor,
        mean: Tensor,
        var: Tensor,
        batches: Tensor | None,
        momentum: float,
        count: int,
    ) -> None:
        """Update running statistics in place, see :func:`update_running`."""

    def backward(
        self, grad: Tensor, x: Tensor, fusion: Fusion, *kept: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, bias, taps, weight2, bias2 and expand.

        ``None`` stands for a layer that is missing, and may be left out at the end.

        Args:
            grad: the gradient of the output.
            x: the input.
            fusion: the layers.
            kept: statistics and other tensors from ``forward``.
        """


def _kernels(x: Tensor, expand: Tensor | None) -> _Kernels:
    if not x.is_cuda:
        return native
    from dwsep_zoo.ops import triton_expand, triton_norm  # import Triton only if there is a GPU

    return triton_norm if expand is None else triton_expand
