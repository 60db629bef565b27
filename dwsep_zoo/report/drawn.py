"""The rows of a table that are drawn where there are too many to be told apart."""

from __future__ import annotations

from collections.abc import Sequence

from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.schema.measures import MEASURES

MOST_ROWS = 24  # that figures draw; tables have all


def drawn(table: Table) -> list[tuple[int, Row]]:
    """Indices and rows that figures draw: all, or those that no row beats in accuracy and a cost.

    The most accurate of them come first, then their references, then other rows in their order.
    """
    rows = list(enumerate(table.rows))
    if len(rows) <= MOST_ROWS:
        return rows
    numbers = {row.first: index for index, row in rows}
    front: set[int] = set()
    accuracies = {index: row.accuracy.mean for index, row in rows if row.accuracy}
    for measure in MEASURES:
        costs = {i: table.rows[i].value(measure) for i in accuracies if measure.axis}
        points = [(cost, accuracies[i], i) for i, cost in costs.items() if cost]
        front |= {points[n][2] for n in pareto_front([(x, y) for x, y, _ in points])}
    best = sorted(front, key=lambda index: -accuracies[index])
    references = [row.reference for row in map(table.rows.__getitem__, best) if row.reference]
    chosen = dict.fromkeys((*best, *(numbers[row.first] for row in references), *range(len(rows))))
    return [(index, table.rows[index]) for index in sorted(list(chosen)[:MOST_ROWS])]


def left_out(table: Table) -> str:
    """A line about the rows that figures leave out; nothing if they draw all."""
    if len(table.rows) <= MOST_ROWS:
        return ""
    return (
        f"figures draw {MOST_ROWS} of the {len(table.rows)} rows: those that no row beats in "
        "accuracy and a cost, their references, and the first others; the table has all. To draw "
        "others, filter: dwsep compare ... model=... conv=... width_mult=..."
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The pairs of cost and accuracy that no other one beats in both, by rising cost."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
