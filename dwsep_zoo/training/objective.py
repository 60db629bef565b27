"""The loss of a training batch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dwsep_zoo.data.mix import partners


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    share: Tensor | None = None,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of a batch, ().

    It is torch's ``CrossEntropyLoss``, but weighted images are divided by their number and not by
    the sum of their weights, which is another one in every batch: 2 x 64 images, in two processes
    or accumulated, train as 1 x 128 do.

    Args:
        logits: (N, classes) float32.
        labels: (N,) int64.
        share: () float32: the target of a mixed image is its own class by this share and that of
            its partner by the rest, arXiv:1710.09412, equation 2; ``None``: images are not mixed.
        label_smoothing: part of every target that is spread over all classes.
        class_weights: (classes,), see :func:`balanced_weights`; ``None``: all count 1.
    """

    def towards(targets: Tensor) -> Tensor:
        if class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        weights = class_weights.to(logits.dtype)  # float64 in a network of float64
        total = F.cross_entropy(
            logits, targets, weights, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / len(logits)

    own = towards(labels)
    if share is None:
        return own
    return torch.lerp(towards(partners(labels)), own, share.to(own.dtype))


def main_labels(labels: Tensor, share: Tensor | None) -> Tensor:
    """The class of the larger share of each image, by which training accuracy counts, (N,)."""
    return labels if share is None else torch.where(share >= 0.5, labels, partners(labels))


def balanced_weights(labels: NDArray[np.int64], num_classes: int) -> Tensor:
    """``n / (k n_c)`` for each class: its n_c images together count as those of any other class.

    Args:
        labels: of the n training images.
        num_classes: the k classes are those of them that have images; the others have weight 0.

    Returns:
        (num_classes,) float32, whose mean over the images is 1.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / ((counts > 0).sum() * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 0.0)).float()
