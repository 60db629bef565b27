"""The rows of a table that are drawn where there are too many to be told apart."""

from __future__ import annotations

from collections.abc import Sequence

from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.schema.measures import MEASURES

MOST_ROWS = 24  # that figures draw; tables have all


def drawn(table: Table) -> list[tuple[int, Row]]:
    """Indices and rows that figures draw: all, or those that no row beats in accuracy and a cost.

    References of these rows come next, then the others in their order.
    """
    rows = list(enumerate(table.rows))
    if len(rows) <= MOST_ROWS:
        return rows
    numbers = {row.first: index for index, row in rows}
    front: dict[int, None] = {}
    for measure in MEASURES:
        tested = [(i, row.value(measure), row.accuracy) for i, row in rows if measure.axis]
        points = [(i, cost, accuracy.mean) for i, cost, accuracy in tested if cost and accuracy]
        front |= {points[n][0]: None for n in pareto_front([point[1:] for point in points])}
    references = [row.reference for i, row in rows if i in front]
    front |= {numbers[row.first]: None for row in references if row}
    chosen = [*front, *(index for index, _ in rows if index not in front)][:MOST_ROWS]
    return [(index, table.rows[index]) for index in sorted(chosen)]


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
