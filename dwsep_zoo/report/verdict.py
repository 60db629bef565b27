"""The answer of a table: how the main networks compare in accuracy and cost."""

from __future__ import annotations

from dataclasses import dataclass

from dwsep_zoo.report.columns import row_label
from dwsep_zoo.report.statistics import SAME, Interval, interval_text
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
        difference: of test accuracy, 0-1, the mean over the common seeds.
        interval: of that mean by Student's t, within -1 and 1; ``None`` with one seed or without
            spread.
        outcome: ``better``, ``worse`` or ``not distinguishable`` by ``RULE``; ``None``: undecided.
        seeds: number of common seeds.
        points: such as ``0.40 points better``.
        verdict: the outcome, or why there is none.
        costs: MACs and latency, where both networks have them.
    """

    row: Row
    reference: Row
    label: str
    reference_label: str
    difference: float
    interval: Interval | None
    outcome: str | None
    seeds: int
    points: str
    verdict: str
    costs: tuple[Cost, ...]

    @property
    def text(self) -> str:
        """Everything in one sentence."""
        costs = [cost.words + (" (unsteady)" if cost.unsteady else "") for cost in self.costs]
        return "; ".join([f"{self.label} is {self.accuracy}", *costs])

    @property
    def accuracy(self) -> str:
        """Such as ``0.40 points better [-0.30, +1.10], not distinguishable``."""
        text = f"{self.points} {interval_text(self.interval)}" if self.interval else self.points
        return text if self.points.endswith(self.verdict) else f"{text}, {self.verdict}"


@dataclass(frozen=True)
class Headline:
    """The main answers of a table, and how many pairs are left to the table itself."""

    answers: tuple[Answer, ...]
    others: int


def headline(table: Table) -> Headline:
    """The answers for one network of each model, at most ``MOST``.

    For each model that is the first row with ``conv=depthwise_separable`` that was not matched to a
    budget, or else the first row that has a reference.
    """
    pairs = [row for row in table.rows if row.reference and row.paired]
    best: dict[str, Row] = {}
    for row in sorted(pairs, key=lambda r: (r.first.conv != "depthwise_separable", bool(r.match))):
        best.setdefault(row.first.model, row)
    answers = [_answer(table, row) for row in pairs if best[row.first.model] is row][:MOST]
    return Headline(tuple(answers), len(pairs) - len(answers))


def _answer(table: Table, row: Row) -> Answer:
    reference, paired = row.reference, row.paired
    assert reference is not None
    assert paired is not None
    same = reference.first.model == row.first.model
    side = "better" if paired.mean > 0 else "worse"
    return Answer(
        row=row,
        reference=reference,
        label=row_label(table, row),
        reference_label=row_label(table, reference, model=not same),
        difference=paired.mean,
        interval=paired.t,
        outcome=paired.outcome,
        seeds=paired.n,
        points=f"{100 * abs(paired.mean):.2f} points {side}",
        verdict=paired.verdict,
        costs=tuple(_costs(table, row)),
    )


def _costs(table: Table, row: Row) -> list[Cost]:
    found = []
    for measure in measures(table.conditions[:1]):
        ratio = row.ratio(measure)
        if measure.words is None or not ratio:
            continue
        less, equal, more = measure.words
        factor = max(ratio, 1 / ratio)
        digits = 1 if factor >= 1.95 else 2
        text = f"{factor:.{digits}f}x {less if ratio < 1 else more}"
        unsteady = measure.name == LATENCY.name and is_unsteady(row, table.conditions[0])
        words = text if factor - 1 >= EQUAL else f"about {equal}"
        found.append(Cost(measure.name, ratio, unsteady, words))
    return found


def is_unsteady(row: Row, conditions: Conditions) -> bool:
    """True if the ratio of the latencies includes other load of the machine."""
    steady = [one.stable(conditions) for one in (row, row.reference or row)]
    return False in steady or not row.measured_in_turns
