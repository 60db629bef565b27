"""The loss of a training batch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of a batch, ().

    It is torch's ``CrossEntropyLoss``, but weighted images are divided by their number and not by
    the sum of their weights, which is another one in every batch: 2 x 64 images, in two processes
    or accumulated, train as 1 x 128 do.

    Args:
        logits: ``(N, C)``.
        labels: ``(N,)`` int64.
        label_smoothing: share of the target that is spread over all classes.
        class_weights: ``(C,)``, see :func:`balanced_weights`; ``None``: all count 1.
    """
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    weights = class_weights.to(logits.dtype)  # of float64 in a network of float64
    total = F.cross_entropy(
        logits, labels, weights, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / len(logits)


def balanced_weights(labels: NDArray[np.int64], num_classes: int) -> Tensor:
    """``n / (k n_c)`` for each class: its n_c images together count as those of any other class.

    Args:
        labels: of the n training images.
        num_classes: the k classes are those of them that have images; the others have weight 0.

    Returns:
        ``(num_classes,)`` float32, whose mean over the images is 1.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / ((counts > 0).sum() * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 0.0)).float()
