"""Muon: steps of equal length in every direction of a matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

from dwsep_zoo.analysis.device import has_fast_bfloat16

STEPS = 3
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
FREE = {"cpu": 2e6, "cuda": 1e9}
"""Multiply-adds that take about as long as the calls of one more batch of matrices.

The value for GPUs is an estimate; it has not been measured.
"""

_fast_bfloat16 = cache(has_fast_bfloat16)
Shape = tuple[int, int]
"""Rows and columns of a matrix that is not wide."""


class Muon(Optimizer):
    """Muon for groups of matrices, SGD with Nesterov's momentum for all others.

    A few directions dominate the gradient of a matrix. Muon gives all of them the same length
    (:func:`orthogonalise`), so rare directions are learned as fast: Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon. A norm behind a convolution makes the length of
    its weight meaningless; before each step the Frobenius norm is set to the root of the number
    of rows, as in Jordan's CIFAR-10 speed runs (arXiv:2404.00498), which takes the place of weight
    decay.

    ``torch.optim.Muon`` takes parameters of two dimensions only, one after the other, and needs a
    second optimizer for the others. A rate may be a tensor, so CUDA graphs can contain the steps.

    Args:
        groups: each with ``lr`` and ``momentum``; with ``weight_decay``, as SGD has it, or with
            ``orthogonal=True``, whose parameters are taken for matrices of ``len(p)`` rows.
    """

    def __init__(self, groups: list[dict[str, Any]]):
        super().__init__(groups, {"weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            if params:
                (_muon if group["orthogonal"] else _sgd)(group, params, buffers)
        return loss


def _sgd(group: dict[str, Any], params: list[Tensor], buffers: list[Tensor]) -> None:
    sgd(
        params,
        [cast(Tensor, p.grad) for p in params],
        [*buffers],
        fused=True,
        lr=group["lr"],
        momentum=group["momentum"],
        weight_decay=group["weight_decay"],
        dampening=0.0,
        nesterov=True,
        maximize=False,
    )


def _muon(group: dict[str, Any], params: list[Tensor], buffers: list[Tensor]) -> None:
    grads = [cast(Tensor, p.grad) for p in params]
    if group["weight_decay"]:
        grads = [*torch._foreach_add(grads, params, alpha=group["weight_decay"])]
    torch._foreach_mul_(buffers, group["momentum"])
    torch._foreach_add_(buffers, grads)
    directions = torch._foreach_add(grads, buffers, alpha=group["momentum"])
    steps = orthogonalise([d.flatten(1) for d in directions], length=group["lr"])
    lengths = [*torch._foreach_norm(params)]
    torch._foreach_add_(lengths, 1e-7)  # of zeros: zeros
    torch._foreach_reciprocal_(lengths)
    torch._foreach_mul_(lengths, [len(p) ** 0.5 for p in params])
    torch._foreach_mul_(params, lengths)
    torch._foreach_sub_(params, [s.view(p.shape) for s, p in zip(steps, params, strict=True)])


def orthogonalise(
    matrices: Sequence[Tensor],
    *,
    length: float | Tensor = 1.0,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """``(M, N)`` -> ``length`` times about the nearest one whose singular values are all 1.

    After a few Newton-Schulz steps with the polynomial of the paper above they lie between 0.3 and
    1.3, which is close enough to learn by, except those that were almost 0.

    Args:
        matrices: of any shapes; equal and similar ones are computed together, see :func:`batches`.
        length: of each direction.
        dtype: of the computation; by default bfloat16 where the hardware is fast at it, as its
            rounding does not matter here, else float32.
    """
    a, b, c = COEFFICIENTS
    device = matrices[0].device.type
    dtype = dtype or (torch.bfloat16 if _fast_bfloat16(device) else torch.float32)
    tall = [m if m.shape[0] >= m.shape[1] else m.T for m in matrices]  # products of the small side
    shapes = tuple((m.shape[0], m.shape[1]) for m in tall)
    found: list[Tensor] = [*matrices]
    for shape, members in batches(shapes, FREE.get(device, 0.0)):
        x = tall[0].new_zeros((len(members), *shape), dtype=dtype)
        torch._foreach_copy_(_parts(x, members, shapes), [tall[i] for i in members])
        x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(STEPS):
            gram = x.mT @ x
            x = torch.baddbmm(x, x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), beta=a)
        x = x.to(tall[0].dtype) * length
        for i, part in zip(members, _parts(x, members, shapes), strict=True):
            found[i] = part if tall[i] is matrices[i] else part.T
    return found


def _parts(x: Tensor, members: Sequence[int], shapes: Sequence[Shape]) -> list[Tensor]:
    """The matrices in a batch, without the zeros around them."""
    return [x[k, : shapes[i][0], : shapes[i][1]] for k, i in enumerate(members)]


@lru_cache
def batches(shapes: tuple[Shape, ...], free: float) -> list[tuple[Shape, list[int]]]:
    """Which matrices are computed together, by their indices, with the shape of each batch.

    Equal shapes are. Zeros around a matrix do not change its result, so a shape joins the batch of
    a larger one if the products with its zeros take fewer than ``free`` multiply-adds.
    """
    members: dict[Shape, list[int]] = {}
    for index, shape in enumerate(shapes):
        members.setdefault(shape, []).append(index)
    found: dict[Shape, list[int]] = {}
    for shape in sorted(members, key=_cost, reverse=True):
        count, (rows, cols) = len(members[shape]), shape
        larger = [s for s in found if s[0] >= rows and s[1] >= cols]
        best = min(larger, key=_cost, default=shape)
        joins = count * (_cost(best) - _cost(shape)) < free
        found.setdefault(best if joins else shape, []).extend(members[shape])
    return [*found.items()]


def _cost(shape: Shape) -> int:
    """Multiply-adds for one matrix."""
    rows, cols = shape
    return STEPS * (2 * rows * cols**2 + cols**3)
