"""The test of one network by class, and who is taken for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dwsep_zoo.report.predictions import Predictions
from dwsep_zoo.schema.record import PerClass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Confusion(NamedTuple):
    """Images of one class that were taken for another; ``share`` of all images of the class."""

    true: int
    predicted: int
    images: int
    share: float


def per_class(predictions: Predictions, num_classes: int) -> PerClass:
    """Accuracies of the classes, their mean, and the mean F1."""
    import numpy as np

    label, predicted = predictions.label, predictions.predicted
    images = np.bincount(label, minlength=num_classes)
    guessed = np.bincount(predicted, minlength=num_classes)
    right = np.bincount(label[label == predicted], minlength=num_classes)
    accuracy = right[images > 0] / images[images > 0]
    either = images + guessed > 0
    f1 = 2 * right[either] / (images + guessed)[either]
    return PerClass(
        images=tuple(images.tolist()),
        accuracy=tuple(
            r / n if n else None for r, n in zip(right.tolist(), images.tolist(), strict=True)
        ),
        balanced_acc=float(accuracy.mean()),
        macro_f1=float(f1.mean()),
    )


def confusion_matrix(predictions: Predictions, num_classes: int) -> NDArray[np.int64]:
    """(C, C) number of images by true class (row) and predicted class (column)."""
    import numpy as np

    pairs = predictions.label * num_classes + predictions.predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def confusions(predictions: Predictions, most: int) -> list[Confusion]:
    """The most frequent confusions, the first by number and then by share of the true class."""
    import numpy as np

    wrong = predictions.label != predictions.predicted
    pairs = np.stack([predictions.label[wrong], predictions.predicted[wrong]], 1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    images = np.bincount(predictions.label)
    every = [
        Confusion(true, predicted, count, count / int(images[true]))
        for (true, predicted), count in zip(found.tolist(), counts.tolist(), strict=True)
    ]
    return sorted(every, key=lambda one: (-one.images, -one.share, one.true, one.predicted))[:most]


def surest_mistakes(predictions: Predictions, most: int) -> NDArray[np.int64]:
    """Positions of the wrong predictions, the most probable first; unknown probabilities last.

    Among equals, as float16 has them near 1, those first whose true class is least probable.
    """
    import numpy as np

    wrong = np.flatnonzero(predictions.label != predictions.predicted)
    sure = predictions.probability_of(predictions.predicted)[wrong]
    true = np.nan_to_num(predictions.probability_of(predictions.label)[wrong])
    return wrong[np.lexsort((true, -np.nan_to_num(sure, nan=-1.0)))[:most]]
