"""Accuracy on damaged images by the kind of damage and its severity (arXiv:1903.12261)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dwsep_zoo.report.columns import Column, row_label
from dwsep_zoo.report.labels import MISSING

if TYPE_CHECKING:
    import numpy as np

    from dwsep_zoo.report.table import Table

PREFIX = "corruption/"
"""Begins the names of these accuracies among a record's metrics: ``corruption/fog/3``."""


def accuracies(names: Sequence[str], right: np.ndarray) -> dict[str, float]:
    """The accuracy of each kind and severity.

    Args:
        names: of the images, ``kind/severity/number``.
        right: (n,) bool, whether each was classified correctly.
    """
    import numpy as np

    kinds = [name.rpartition("/")[0] for name in names]
    found, number = np.unique(kinds, return_inverse=True)
    share = np.bincount(number, weights=right) / np.bincount(number)
    return {f"{PREFIX}{kind}": float(value) for kind, value in zip(found, share, strict=True)}


def by_kind(metrics: Mapping[str, float | None]) -> dict[str, dict[str, float]]:
    """The accuracies of each kind by severity, from a record's metrics."""
    found: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        if key.startswith(PREFIX) and value is not None:
            kind, _, severity = key.removeprefix(PREFIX).rpartition("/")
            found.setdefault(kind, {})[severity] = value
    return found


def mean(values: Mapping[str, float]) -> float:
    """Over severities."""
    return sum(values.values()) / len(values)


def lines(metrics: Mapping[str, float | None]) -> list[str]:
    """A line for each kind with the accuracy of each severity in percent, and their means."""
    found = by_kind(metrics)
    if not found:
        return []
    severities = sorted({severity for values in found.values() for severity in values})
    width = max(len(kind) for kind in found)

    def line(name: str, cells: Sequence[str]) -> str:
        return f"{name:{width}}  {' '.join(f'{cell:>5}' for cell in cells)}"

    rows = {
        kind: [*(values.get(one) for one in severities), mean(values)]
        for kind, values in found.items()
    }
    every = [[value for value in column if value is not None] for column in zip(*rows.values())]  # noqa: B905
    rows["mean"] = [sum(column) / len(column) for column in every]
    return [
        line("accuracy in %, severity", [*severities, "mean"]),
        *(line(kind, [_percent(value) for value in cells]) for kind, cells in rows.items()),
    ]


def corruption_columns(table: Table) -> list[Column]:
    """A line for each kind, with the mean over severities of each row; nothing if there is none."""
    of = [by_kind(row.record.metrics) for row in table.rows]
    kinds = sorted({kind for found in of for kind in found})
    if not kinds:
        return []
    columns = [Column("corruption", (*kinds, "mean"), is_number=False)]
    for row, found in zip(table.rows, of, strict=True):
        own = {kind: mean(values) for kind, values in found.items()}
        cells = [_percent(own.get(kind)) for kind in kinds]
        columns.append(
            Column(row_label(table, row), (*cells, _percent(mean(own) if own else None)))
        )
    return columns


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"
