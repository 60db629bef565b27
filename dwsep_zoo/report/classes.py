"""The test by class: who is taken for whom, and what one network loses against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dwsep_zoo.report.predictions import Predictions
from dwsep_zoo.report.statistics import Paired, paired
from dwsep_zoo.report.table import Row
from dwsep_zoo.schema.record import PerClass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_CLASSES = 24  # whose differences are shown, half of them from each end
MOST_CONFUSIONS = 5
MOST_EXAMPLES = 12


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


@dataclass(frozen=True)
class ClassDifference:
    """The accuracy of two networks on the images of one class.

    Attributes:
        images: of the class in the test set.
        reference, other: mean accuracy over the common seeds.
        paired: their difference, with the outcome by the rule of all verdicts.
    """

    name: str
    images: int
    reference: float
    other: float
    paired: Paired


@dataclass(frozen=True, eq=False)
class ClassComparison:
    """A row against its reference, class by class, over their common seeds.

    Attributes:
        number: of classes with test images.
        differences: of all classes, or of those that lose and gain most; the worst first.
        only_reference: positions of the images that only the reference classifies correctly, in
            every seed; the surest mistakes of the row's first seed come first.
        only_other: likewise, those that only the row classifies correctly.
        lost: what the row takes the images of ``only_reference`` for, in its first seed.
    """

    row: Row
    class_names: tuple[str, ...]
    seeds: tuple[int, ...]
    number: int
    differences: tuple[ClassDifference, ...]
    only_reference: NDArray[np.int64]
    only_other: NDArray[np.int64]
    lost: tuple[Confusion, ...]
    predictions: Predictions

    @property
    def told(self) -> int:
        """Classes shown whose difference the rule tells from chance."""
        return sum(d.paired.outcome in ("better", "worse") for d in self.differences)


def compare_classes(row: Row) -> ClassComparison | None:
    """``None`` without a reference, or without predictions of the same images and seeds."""
    import numpy as np

    if row.reference is None or row.is_reference:
        return None
    reference, other = row.reference.predictions, row.predictions
    seeds = tuple(sorted(reference.keys() & other.keys()))
    found = [*(reference[seed] for seed in seeds), *(other[seed] for seed in seeds)]
    if not seeds or not all(np.array_equal(one.label, found[0].label) for one in found):
        return None
    first = other[seeds[0]]
    right = np.array([one.predicted == one.label for one in found]).reshape(2, len(seeds), -1)
    always, never = np.all(right, axis=1), ~np.any(right, axis=1)
    sure = np.nan_to_num(first.probability_of(first.predicted), nan=-1.0)
    order = np.argsort(-sure, kind="stable")
    only_reference = order[(always[0] & never[1])[order]]
    names = _class_names(row, found)
    lost = Predictions(first.label[only_reference], first.predicted[only_reference])
    return ClassComparison(
        row,
        names,
        seeds,
        len(np.unique(first.label)),
        tuple(_differences(reference, other, seeds, names)),
        only_reference,
        np.flatnonzero(always[1] & never[0]),
        tuple(confusions(lost, MOST_CONFUSIONS)) if len(lost) else (),
        first,
    )


def _differences(
    reference: Mapping[int, Predictions],
    other: Mapping[int, Predictions],
    seeds: Sequence[int],
    names: Sequence[str],
) -> list[ClassDifference]:
    """Sorted by the mean difference; the tests are made for the classes that are shown."""
    label = other[seeds[0]].label
    images = per_class(other[seeds[0]], len(names)).images
    of_class = {
        whose: {seed: per_class(found[seed], len(names)).accuracy for seed in seeds}
        for whose, found in (("reference", reference), ("other", other))
    }

    def by_seed(whose: str, number: int) -> dict[int, float]:
        return {seed: of_class[whose][seed][number] or 0.0 for seed in seeds}

    def mean(whose: str, number: int) -> float:
        return sum(by_seed(whose, number).values()) / len(seeds)

    numbers = sorted(
        {int(number) for number in set(label.tolist())},
        key=lambda n: (mean("other", n) - mean("reference", n), n),
    )
    if len(numbers) > MOST_CLASSES:
        numbers = numbers[: MOST_CLASSES // 2] + numbers[-MOST_CLASSES // 2 :]
    found = []
    for number in numbers:
        pair = paired(
            by_seed("reference", number),
            by_seed("other", number),
            {seed: reference[seed].of_class(number) for seed in seeds},
            {seed: other[seed].of_class(number) for seed in seeds},
        )
        assert pair
        found.append(
            ClassDifference(
                names[number],
                images[number],
                mean("reference", number),
                mean("other", number),
                pair,
            )
        )
    return found


def _class_names(row: Row, found: Sequence[Predictions]) -> tuple[str, ...]:
    """From the predictions, from the record of an older run, or numbers."""
    names = found[-1].class_names or row.record.data.class_names
    highest = max(int(max(one.label.max(), one.predicted.max())) for one in found)
    return names if len(names) > highest else tuple(map(str, range(highest + 1)))
