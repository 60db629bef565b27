"""The loss of a training batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep_zoo.data.mix import partners


def cross_entropy(
    logits: Tensor, labels: Tensor, *, share: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of a batch, ().

    Args:
        logits: (N, classes) float32.
        labels: (N,) int64.
        share: () float32: the target of a mixed image is its own class by this share and that of
            its partner by the rest, arXiv:1710.09412, equation 2; ``None``: images are not mixed.
        label_smoothing: part of every target that is spread over all classes.
    """
    own = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if share is None:
        return own
    other = F.cross_entropy(logits, partners(labels), label_smoothing=label_smoothing)
    return torch.lerp(other, own, share)


def main_labels(labels: Tensor, share: Tensor | None) -> Tensor:
    """The class of the larger share of each image, by which training accuracy counts, (N,)."""
    return labels if share is None else torch.where(share >= 0.5, labels, partners(labels))
