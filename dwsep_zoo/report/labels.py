"""Names of rows, just long enough to tell those of a table apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from dwsep_zoo.report.results import Run
    from dwsep_zoo.report.table import Row

MISSING = "-"
QUANTITIES = {"params": "params", "macs": "MACs", "latency": "latency"}
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Label:
    """The name of a row.

    Attributes:
        conv: the conv type, with those of its options that differ in the table.
        model: the model, if the table has several.
        parts: the rest of the name, which begins with ``conv``.
    """

    conv: str
    model: tuple[str, ...]
    parts: tuple[str, ...]


def labels(rows: Sequence[Row], *, tags: bool) -> dict[Run, Label]:
    """Name all rows of a table, by their first runs, in a time that grows with their number.

    Args:
        rows: of the table.
        tags: whether rows are told apart by their tags.
    """
    convs = _conv_labels(rows)
    models = len({row.first.model for row in rows}) > 1
    found: dict[Run, Label] = {}
    for (model, conv), alike in grouped(rows, lambda r: (r.first.model, convs[r.first])).items():
        widths = len({row.record.width_mult for row in alike}) > 1
        strides = len({row.record.output_stride for row in alike}) > 1
        searches = len({row.first.searched for row in alike}) > 1
        # Built by versions of the code that count differently
        for twins in grouped(
            alike, lambda row: (row.network, not row.match, row.first.form)
        ).values():
            counts = len({(row.record.params, row.record.macs) for row in twins}) > 1
            for row in twins:
                record = row.record
                parts = [conv]
                if widths:
                    parts.append(f"width {general(record.width_mult)}")
                if strides:
                    parts.append(f"stride {general(record.output_stride)}")
                if row.match:
                    quantity = row.match.quantity
                    parts.append(f"(matched {QUANTITIES.get(quantity, quantity)})")
                if row.first.taught:
                    parts.append(f"taught by {row.first.taught}")
                if row.first.form:
                    parts.append(f"as {row.first.form}")
                if searches:
                    parts += [f"{key}={value:g}" for key, value in row.first.searched]
                if tags:
                    parts += row.first.tags
                if counts:
                    parts.append(f"of {record.params} parameters and {record.macs} MACs")
                found[row.first] = Label(conv, (model,) if models else (), tuple(parts))
    return found


def _conv_labels(rows: Sequence[Row]) -> dict[Run, str]:
    found: dict[Run, str] = {}
    for conv, members in grouped(rows, lambda row: row.first.conv).items():
        options = {row.first: dict(row.first.conv_options) for row in members}
        values: Mapping[str, set[str | None]] = {
            key: {own.get(key) for own in options.values()}
            for key in sorted({key for own in options.values() for key in own})
        }
        differ = [key for key, found in values.items() if len(found) > 1]
        for run, own in options.items():
            found[run] = " ".join([conv, *(f"{key}={own.get(key, MISSING)}" for key in differ)])
    return found


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items by their keys, both in the order of their first appearance."""
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def general(value: float | None) -> str:
    """A number as short as it can be."""
    return MISSING if value is None else f"{value:g}"
