"""The classes that a network loses and gains against its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dwsep_zoo.report.classes import Confusion, confusions, per_class
from dwsep_zoo.report.columns import Column, decimals
from dwsep_zoo.report.labels import MISSING
from dwsep_zoo.report.predictions import Predictions
from dwsep_zoo.report.statistics import SAME, Paired, interval_text, paired, points
from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.report.verdict import headline

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_CLASSES = 24  # whose differences are shown, half of them from each end
MOST_CONFUSIONS = 5


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
class ClassPair:
    """A network against its reference, class by class, over their common seeds.

    Attributes:
        label, reference_label: names of the two.
        number: of classes with test images.
        differences: of all classes, or of those that lose and gain most; the worst first.
        only_reference: positions of the images that only the reference classifies correctly, in
            every seed; the surest mistakes of the row's first seed come first.
        only_other: likewise, those that only the network classifies correctly.
        lost: what the network takes the images of ``only_reference`` for, in its first seed.
        predictions: of its first seed.
    """

    row: Row
    label: str
    reference_label: str
    class_names: tuple[str, ...]
    seeds: tuple[int, ...]
    number: int
    differences: tuple[ClassDifference, ...]
    only_reference: NDArray[np.int64]
    only_other: NDArray[np.int64]
    lost: tuple[Confusion, ...]
    predictions: Predictions

    @property
    def title(self) -> str:
        return f"{self.label} against {self.reference_label}"

    @property
    def columns(self) -> list[Column]:
        """A line for each class that is shown."""
        found = self.differences
        pairs = [one.paired for one in found]
        return [
            Column("class", tuple(one.name for one in found), is_number=False),
            Column("images", tuple(f"{one.images:,}" for one in found)),
            Column("reference %", decimals([100 * one.reference for one in found])),
            Column("this %", decimals([100 * one.other for one in found])),
            Column("difference, points", tuple(points(pair.mean) for pair in pairs)),
            Column("95 % interval", tuple(_interval(pair) for pair in pairs)),
            Column("verdict", tuple(pair.verdict for pair in pairs), is_number=False),
        ]

    @property
    def sentences(self) -> list[str]:
        """Where the two disagree, and how far the table can be trusted."""
        every = "" if len(self.seeds) == 1 else " in every seed"
        lines = [
            f"of {len(self.predictions):,} test images, only {self.reference_label} classifies "
            f"{len(self.only_reference):,} correctly{every}, only {self.label} "
            f"{len(self.only_other):,}"
        ]
        if self.lost:
            taken = (
                f"{self.class_names[one.true]} for {self.class_names[one.predicted]} ({one.images})"
                for one in self.lost
            )
            seed = "" if len(self.seeds) == 1 else f", in seed {self.seeds[0]}"
            lines.append(f"of the former{seed}, {self.label} takes {', '.join(taken)}")
        told = [one for one in self.differences if one.paired.outcome not in (None, SAME)]
        by_chance = (
            "each interval or test is about one class by itself: were there no difference at all, "
            f"about {self.number / 20:.2g} of the {self.number} classes would be told better or "
            f"worse by chance; {len(told)} of the {len(self.differences)} shown are"
        )
        lines.append(by_chance)
        if self.number > len(self.differences):
            half = MOST_CLASSES // 2
            lines.append(
                f"shown: the {half} classes that lose and the {half} that gain most of "
                f"{self.number}; as they were chosen for it, their true differences are smaller"
            )
        return lines


def class_pairs(table: Table) -> list[ClassPair]:
    """The main pairs of a table, see ``headline``, as far as they have the same test images."""
    found = (
        _compare(answer.row, answer.row.reference, answer.label, answer.reference_label)
        for answer in headline(table).answers
        if answer.row.reference
    )
    return [pair for pair in found if pair]


def _compare(row: Row, other: Row, label: str, reference_label: str) -> ClassPair | None:
    """``None`` without predictions of the same images and seeds."""
    import numpy as np

    reference, own = other.predictions, row.predictions
    seeds = tuple(sorted(reference.keys() & own.keys()))
    found = [*(reference[seed] for seed in seeds), *(own[seed] for seed in seeds)]
    if not seeds or not all(np.array_equal(one.label, found[0].label) for one in found):
        return None
    first = own[seeds[0]]
    right = np.array([one.predicted == one.label for one in found]).reshape(2, len(seeds), -1)
    always, never = np.all(right, axis=1), ~np.any(right, axis=1)
    sure = np.nan_to_num(first.probability_of(first.predicted), nan=-1.0)
    order = np.argsort(-sure, kind="stable")
    only_reference = order[(always[0] & never[1])[order]]
    lost = Predictions(first.label[only_reference], first.predicted[only_reference])
    names = _class_names(row, found)
    return ClassPair(
        row=row,
        label=label,
        reference_label=reference_label,
        class_names=names,
        seeds=seeds,
        number=len(np.unique(first.label)),
        differences=tuple(_differences((reference, own), seeds, names)),
        only_reference=only_reference,
        only_other=np.flatnonzero(always[1] & never[0]),
        lost=tuple(confusions(lost, MOST_CONFUSIONS)),
        predictions=first,
    )


def _differences(
    predictions: Sequence[Mapping[int, Predictions]], seeds: Sequence[int], names: Sequence[str]
) -> list[ClassDifference]:
    """Those of the reference come first; McNemar's tests are made where the rule asks for them."""
    import numpy as np

    accuracies = [
        {seed: per_class(found[seed], len(names)).accuracy for seed in seeds}
        for found in predictions
    ]
    images = per_class(predictions[0][seeds[0]], len(names)).images
    alone = 1 if len(seeds) == 1 else 0
    tested = [number for number, count in enumerate(images) if count]
    means = np.array(
        [[[own[s][n] for n in tested] for s in seeds] for own in accuracies], dtype=np.float64
    ).mean(1)
    order = np.argsort(means[1] - means[0], kind="stable").tolist()
    if len(order) > MOST_CLASSES:
        order = order[: MOST_CLASSES // 2] + order[-MOST_CLASSES // 2 :]
    differences = []
    for place in order:
        number = tested[place]
        by_seed = [{seed: found[seed][number] or 0.0 for seed in seeds} for found in accuracies]
        tests = [{s: found[s].of_class(number) for s in seeds[:alone]} for found in predictions]
        pair = paired(by_seed[0], by_seed[1], tests[0], tests[1])
        assert pair
        theirs, ours = means[:, place].tolist()
        differences.append(ClassDifference(names[number], images[number], theirs, ours, pair))
    return differences


def _class_names(row: Row, found: Sequence[Predictions]) -> tuple[str, ...]:
    """From the predictions, from the record of an older run, or numbers."""
    names = found[-1].class_names or row.record.data.class_names
    highest = max(int(max(one.label.max(), one.predicted.max())) for one in found)
    return names if len(names) > highest else tuple(map(str, range(highest + 1)))


def _interval(pair: Paired) -> str:
    return interval_text(pair.t) if pair.t else MISSING
