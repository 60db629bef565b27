"""Batch norms with the statistics of several processes: the ranks of the default process group.

Each normalisation adds one vector of numbers over the ranks in either direction: the sums of a
channel's values and squares, or of its gradients, and the count of values. PyTorch's operators here
and the kernels of ``native.cpp`` add the same numbers, so each rank may use either, with any number
of images. The gradient of an input is that of the sum of all ranks' losses. Weight and bias get a
rank's own part of theirs, which data-parallel training adds up.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

ADD = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_long)
"""The type of ``Add`` in ``native.cpp``."""
_NO_ADDITION = ADD()


def several() -> bool:
    """Whether there are several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise each channel with the statistics of all ranks, by PyTorch's operators.

    Args:
        x: ``(N, C, ...)``; ``N`` may differ from rank to rank.
        weight: ``(C,)`` or ``None``.
        bias: likewise.
        eps: added to the variance.

    Returns:
        The output, mean and biased variance, ``(C,)``, and the count of values of a channel. Only
        the output has a gradient; there is no second derivative.
    """
    return _Normalise.apply(x, weight, bias, eps)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide, dims, shape = _layout(x)
        own = x.numel() // x.shape[1]
        var, mean = (t.double() for t in torch.var_mean(wide, dims, correction=0))
        mean, square, count = _means(own, own * mean, own * (var + mean.square()))
        var = (square - mean.square()).clamp(min=0)
        inverse = (var + eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        mean, var, inverse, scale, shift = (
            t.to(wide.dtype) for t in (mean, var, inverse, scale, shift)
        )
        ctx.save_for_backward(x, mean, inverse, scale)
        ctx.mark_non_differentiable(mean, var, count)
        y = torch.addcmul(shift.view(shape), wide, scale.view(shape))
        return y.to(x.dtype), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, scale = ctx.saved_tensors
        wide, dims, shape = _layout(x)
        grad, deviation = grad.to(wide.dtype), wide - mean.view(shape)
        of_bias, by_deviation = grad.sum(dims), (grad * deviation).sum(dims)
        level, slope = _means(x.numel() // x.shape[1], of_bias, by_deviation)[:2]
        slope *= inverse.square()
        level, slope = (t.to(wide.dtype).view(shape) for t in (level, slope))
        dx = (grad - level - deviation * slope) * scale.view(shape)
        dweight = by_deviation * inverse if ctx.needs_input_grad[1] else None
        return dx.to(x.dtype), dweight, of_bias if ctx.needs_input_grad[2] else None, None


def _layout(x: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """The values in at least float32, the dimensions of a channel, and the shape of ``(C,)``."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    dims = [dim for dim in range(x.dim()) if dim != 1]
    return wide, dims, [-1 if dim == 1 else 1 for dim in range(x.dim())]


def _means(count: int, *sums: Tensor) -> list[Tensor]:
    """Means over the values of all ranks from this one's sums, ``(C,)``, and the values' count."""
    flat = torch.cat(
        [each.double() for each in sums] + [sums[0].new_tensor([count], dtype=torch.float64)]
    )
    dist.all_reduce(flat)
    return [*(flat[:-1] / flat[-1]).chunk(len(sums)), flat[-1]]


class Addition:
    """Adds a kernel's numbers over the ranks, as it asks for between its passes.

    Args:
        synced: for each norm of the kernel, whether its statistics are those of all ranks.

    Attributes:
        pointers: the last arguments of the kernel, null for a norm of this rank.
    """

    def __init__(self, *synced: bool):
        self.synced = [each and several() for each in synced]
        self.pointers = [ADD(self._add) if each else _NO_ADDITION for each in self.synced]
        self.counts: list[float] = []
        self.error: BaseException | None = None

    def _add(self, address: int, count: int) -> None:
        if self.error is not None:
            return
        try:
            numbers = (ctypes.c_double * count).from_address(address)
            sums = torch.frombuffer(numbers, dtype=torch.float64)
            dist.all_reduce(sums)
            self.counts.append(float(sums[-1]))
        except BaseException as error:  # the kernel cannot pass it on
            self.error = error

    def finish(self, *stats: Tensor) -> list[Tensor]:
        """The norms' statistics; a fifth row has the count of values of all ranks.

        Raises:
            BaseException: what happened while numbers were added, such as the loss of a rank.
        """
        if self.error is not None:
            raise self.error
        counts = iter(self.counts)
        return [
            torch.cat([each, each.new_full((1, each.shape[1]), next(counts))]) if synced else each
            for each, synced in zip(stats, self.synced, strict=False)
        ]
