"""The answer of a table: how the main networks compare in accuracy and cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dwsep_zoo.report.columns import row_label
from dwsep_zoo.report.statistics import SAME, Paired
from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.schema.measures import LATENCY, measures
from dwsep_zoo.schema.record import Conditions

MOST = 3  # pairs that are shown large
EQUAL = 0.03  # of a cost: a smaller difference is none
RULE = (
    "verdict: with several seeds, the 95 % interval of the mean difference (Student's t): better "
    f"or worse if it excludes 0, else {SAME}; with one seed, McNemar's exact test on the test "
    "images (p < 0.05), which is about these two trained networks, not about training again"
)


@dataclass(frozen=True)
class Cost:
    """The cost of a network relative to its reference.

    Attributes:
        name: of the measure, such as ``macs``.
        ratio: the cost over the reference's.
        unsteady: the times varied while measuring, or were not measured in turns.
        words: such as ``7.8x fewer MACs``.
    """

    name: str
    ratio: float
    unsteady: bool
    words: str


@dataclass(frozen=True)
class Answer:
    """A network against its reference.

    Attributes:
        label, reference_label: names of the two.
        paired: their accuracies, with the outcome by ``RULE``.
        points: the difference in words, such as ``0.40 points better``.
        costs: MACs and latency, where both networks have them.
    """

    row: Row
    label: str
    reference_label: str
    paired: Paired
    points: str
    costs: tuple[Cost, ...]


@dataclass(frozen=True)
class Headline:
    """The main answers of a table, and how many pairs are left to the table itself."""

    answers: tuple[Answer, ...]
    others: int


def headline(table: Table) -> Headline:
    """The answers for one network of each model, and one with a teacher, at most ``MOST``.

    For each model that is the first row with ``conv=depthwise_separable`` that was not matched to a
    budget, or else the first row that has a reference.
    """
    pairs = [row for row in table.rows if row.paired]
    best: dict[tuple[str, bool], Row] = {}
    for row in sorted(pairs, key=lambda r: (r.first.conv != "depthwise_separable", bool(r.match))):
        best.setdefault(_question(row), row)
    answers = []
    for row in [row for row in pairs if best[_question(row)] is row][:MOST]:
        reference, paired = row.reference, row.paired
        if reference and paired:
            other = reference.first.model != row.first.model
            names = row_label(table, row), row_label(table, reference, model=other)
            side = "better" if paired.mean > 0 else "worse"
            points = f"{100 * abs(paired.mean):.2f} points {side}"
            answers.append(Answer(row, *names, paired, points, tuple(_costs(table, row))))
    return Headline(tuple(answers), len(pairs) - len(answers))


def _question(row: Row) -> tuple[str, bool]:
    return row.first.model, bool(row.first.taught)


def _costs(table: Table, row: Row) -> Iterator[Cost]:
    for measure in measures(table.conditions[:1]):
        ratio = row.ratio(measure)
        if measure.words is None or not ratio:
            continue
        less, equal, more = measure.words
        factor = max(ratio, 1 / ratio)
        digits = 1 if factor >= 1.95 else 2
        words = f"{factor:.{digits}f}x {less if ratio < 1 else more}"
        unsteady = measure.name == LATENCY.name and is_unsteady(row, table.conditions[0])
        yield Cost(
            measure.name, ratio, unsteady, words if factor - 1 >= EQUAL else f"about {equal}"
        )


def is_unsteady(row: Row, conditions: Conditions) -> bool:
    """True if the ratio of the latencies includes other load of the machine."""
    steady = [one.stable(conditions) for one in (row, row.reference or row)]
    return False in steady or not row.measured_in_turns
