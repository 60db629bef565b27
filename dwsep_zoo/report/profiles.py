"""Rooflines side by side, for networks that were measured in turns."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from dwsep_zoo.analysis.bottleneck import conditions, gaps, sentence
from dwsep_zoo.errors import UserError
from dwsep_zoo.report.columns import row_label
from dwsep_zoo.report.drawn import drawn
from dwsep_zoo.report.results import Problem
from dwsep_zoo.report.table import Table
from dwsep_zoo.schema.parse import parse
from dwsep_zoo.schema.record import FILE_NAME, Conditions
from dwsep_zoo.schema.roofline import Roofline


@dataclass(frozen=True)
class Profile:
    """Networks whose layers were timed under the same conditions.

    Attributes:
        roofline: of all of them, under the labels of the rows.
        rows: index in the table of each network.
        sentences: the layers that separate a network from its reference.
        warnings: networks whose parts do not add up to the whole.
    """

    conditions: str
    roofline: Roofline
    rows: tuple[int, ...]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]


def profiles(table: Table) -> tuple[list[Profile], list[Problem]]:
    """The profiles of the rows that are drawn, and the rooflines that cannot be read."""
    together: dict[str, dict[int, Roofline]] = {}
    problems = []
    shown = {index for index, _ in drawn(table)}
    for index, row in enumerate(table.rows):
        run = next((run for run in row.runs if run.record.roofline), row.first)
        if not run.record.roofline:
            continue
        try:
            _check_numbers(run.record.roofline)
            found = parse(Roofline, run.record.roofline)
            (network,) = found.networks
        except ValueError as error:
            problems.append(Problem(run.folder / FILE_NAME, f"roofline: {error}"))
            continue
        if index not in shown:
            continue
        # The ceilings are measured once for all networks that take turns.
        members = together.setdefault(repr(found.only()), {})
        members[index] = found.only(replace(network, name=row_label(table, row)))
    result = []
    for members in together.values():
        networks = tuple(found.networks[0] for found in members.values())
        joined = next(iter(members.values())).only(*networks)
        rows = {id(table.rows[i].first): n.name for i, n in zip(members, networks, strict=True)}
        sentences = tuple(_sentences(table, joined, rows))
        result.append(
            Profile(conditions(joined), joined, tuple(members), sentences, tuple(gaps(joined)))
        )
    return result, problems


def _check_numbers(value: object, where: str = "") -> None:
    """Raises UserError for a number that can be no time, size or rate."""
    parts: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    elif isinstance(value, int | float) and not 0 <= value <= sys.float_info.max:
        raise UserError(f"{where} must be a number from 0 on; got {value!r}")
    for key, part in parts:
        _check_numbers(part, f"{where}.{key}" if where else str(key))


def _sentences(table: Table, roofline: Roofline, names: Mapping[int, str]) -> Iterator[str]:
    """The layers that separate each network from its reference; ``names`` by first run."""
    measured_under = Conditions(**{n: getattr(roofline, n) for n in Conditions.model_fields})
    for row in table.rows:
        own, reference = (names.get(id(r.first)) if r else None for r in (row, row.reference))
        if own and reference and not row.is_reference:
            ratio = row.latency_ratio(measured_under)  # else the passes of the roofline say it
            speed = 1 / ratio if ratio else None
            yield f"{own} against {reference}: {sentence(roofline, reference, own, speed)}"
