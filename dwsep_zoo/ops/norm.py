"""Batch normalisation with the activation behind it, as one operation in training on the CPU.

PyTorch's own take several times as long as their memory traffic: together almost a third of
MobileNetV1's step in bfloat16. Here a pass is bound by memory (``native.cpp``), and the activation
is part of the norm's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
"""In the order of ``native.cpp``."""


def batch_norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, act: str
) -> tuple[Tensor, Tensor]:
    """``act(batch_norm(x))`` with the batch's own statistics.

    Args:
        x: ``(N, C, H, W)``, one that :func:`native.covers <dwsep_zoo.ops.native.covers>`.
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
        x: Tensor, weight: Tensor, bias: Tensor, eps: float, act: str
    ) -> tuple[Tensor, Tensor]:
        return native.norm_act(x, weight, bias, eps, _number(act))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, bias, ctx.eps, ctx.act = inputs
        ctx.save_for_backward(x, weight, bias, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, stats = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives are wanted, which PyTorch's own have
            y = ACTS[ctx.act](F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps))
            needed = [t for t, n in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if n]
            found = iter(torch.autograd.grad(y, needed, grad, create_graph=True))
            grads = tuple(next(found) if n else None for n in ctx.needs_input_grad[:3])
        else:
            grads = native.norm_act_backward(grad, x, stats, ctx.eps, _number(ctx.act))
        return (*grads, None, None)


def _number(act: str) -> int:
    return [*ACTS].index(act)
