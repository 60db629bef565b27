"""The data of a comparison, which every format reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dwsep_zoo.report.class_pairs import ClassPair, class_pairs
from dwsep_zoo.report.profiles import Profile, profiles
from dwsep_zoo.report.results import Problem, Run, load_results
from dwsep_zoo.report.table import Options, Table, make_tables, select
from dwsep_zoo.schema.record import now

MOST_TABLES = 4  # that are drawn


@dataclass(frozen=True)
class Comparison:
    """Runs as tables, and everything that is in no table.

    Attributes:
        tables: one for each set of runs that may be compared with each other.
        unfinished: runs that failed, were interrupted or are running.
        repeated: finished runs that a later run with the same seed replaces.
        problems: damaged files.
        options: order, filter and reference of the rows.
        made: when, as ISO 8601.
        folder: where the files are written.
        profiles: for each table, the rooflines that belong together.
        classes: for each table, its main pairs class by class.
        files: ``comparison.md``, ``.csv``, ``.json``, ``.tex``, ``.html`` and the pictures.
    """

    tables: tuple[Table, ...]
    unfinished: tuple[Run, ...]
    repeated: tuple[Run, ...]
    problems: tuple[Problem, ...]
    options: Options
    made: str
    folder: Path
    profiles: tuple[tuple[Profile, ...], ...]
    classes: tuple[tuple[ClassPair, ...], ...]
    files: tuple[Path, ...] = ()


def collect(paths: Sequence[Path], folder: Path, options: Options | None = None) -> Comparison:
    """Read the runs below ``paths`` and compare them; nothing is written.

    Raises:
        UserError: if there is no run, none that the filter lets through, or no such reference.
    """
    options = options or Options()
    found, problems = load_results(paths)
    runs = select(found, options.where)
    finished = [run for run in runs if run.record.status == "finished"]
    tables, repeated = make_tables(finished, options)
    measured = [profiles(table) for table in tables]
    return Comparison(
        tables=tuple(tables),
        unfinished=tuple(run for run in runs if run.record.status != "finished"),
        repeated=tuple(repeated),
        problems=(*problems, *(problem for _, damaged in measured for problem in damaged)),
        options=options,
        made=now(),
        folder=folder,
        profiles=tuple(tuple(rooflines) for rooflines, _ in measured),
        classes=tuple(tuple(class_pairs(table)) for table in tables),
    )
