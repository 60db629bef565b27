"""Muon: steps of equal length in every direction of a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

STEPS = 3
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Muon for groups of matrices, SGD with Nesterov's momentum for all others.

    A few directions dominate the gradient of a matrix. Muon gives all of them the same length
    (:func:`orthogonalise`), so rare directions are learned as fast: Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon. A norm behind a convolution makes the length of
    its weight meaningless; before each step the Frobenius norm is set to the root of the number
    of rows, as in Jordan's CIFAR-10 speed runs (arXiv:2404.00498), which takes the place of weight
    decay.

    ``torch.optim.Muon`` takes parameters of two dimensions only, and needs a second optimizer for
    the others.

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
            if params:
                self._step(group, params)
        return loss

    def _step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [cast(Tensor, p.grad) for p in params]
        if group["weight_decay"]:
            grads = [*torch._foreach_add(grads, params, alpha=group["weight_decay"])]
        for p in params:
            if p not in self.state:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        steps = [*torch._foreach_add(grads, buffers, alpha=group["momentum"])]
        if group["orthogonal"]:
            steps = [orthogonalise(s.flatten(1)).view_as(s) for s in steps]
            for p in params:
                p.mul_(len(p) ** 0.5 / (p.norm() + 1e-7))  # of zeros: zeros
        torch._foreach_add_(params, steps, alpha=-group["lr"])


def orthogonalise(matrix: Tensor) -> Tensor:
    """``(M, N)`` -> about the nearest one whose singular values are all 1.

    After a few Newton-Schulz steps with the polynomial of the paper above they lie between 0.3 and
    1.3, which is close enough to learn by, except those that were almost 0.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    if wide := x.shape[0] < x.shape[1]:  # products of the smaller size
        x = x.T
    x = x.contiguous()
    for _ in range(STEPS):
        gram = x.T @ x
        x = torch.addmm(x, x, torch.addmm(gram, gram, gram, beta=b, alpha=c), beta=a)
    return (x.T if wide else x).to(matrix.dtype)
