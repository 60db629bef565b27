"""Losses of a network that learns from another one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler's divergence of softened outputs, times the temperature squared.

    Hinton et al., arXiv:1503.02531, section 2: the square keeps the size of the gradient. The
    paper's cross-entropy with the teacher's outputs is larger by their entropy, a constant.

    Args:
        student: ``(N, C)`` logits.
        teacher: likewise, without gradients.
        temperature: that both are divided by before the softmax.

    Returns:
        The mean over the images; 0 for equal logits.
    """
    own, theirs = _softened(student, temperature), _softened(teacher, temperature)
    return temperature**2 * F.kl_div(own, theirs, reduction="batchmean", log_target=True)


def js(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon's divergence, times the temperature squared; at most ln 2 without that.

    It is symmetric, and has a limit where a class is nearly impossible for one of the two. Cui et
    al., arXiv:2103.05959, take it at temperature 1 and no labels. Arguments as for :func:`kd`.
    """
    own, theirs = _softened(student, temperature), _softened(teacher, temperature)
    middle = torch.logaddexp(own, theirs) - math.log(2)
    both = [F.kl_div(middle, x, reduction="batchmean", log_target=True) for x in (own, theirs)]
    return temperature**2 * (both[0] + both[1]) / 2


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of feature maps, the mean over the maps.

    Romero et al., arXiv:1412.6550, equation 3, without a regressor: the maps have equal shapes.
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([F.mse_loss(own.float(), theirs.float()) for own, theirs in pairs]).mean()


def _softened(logits: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(logits / temperature, 1)


DIVERGENCES = {"kd": kd, "js": js}
"""By ``distill.kind``."""
