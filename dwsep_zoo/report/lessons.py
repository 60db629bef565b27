"""Sentences about networks that learned from another one."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from dwsep_zoo.report.table import Row, Table


def teacher_legend(table: Table) -> Iterator[str]:
    """What a comparison of students has to say about their teachers."""
    students = [row for row in table.rows if row.first.taught]
    if not students:
        return
    yield (
        "taught by: the outputs of a trained network were targets besides the labels, see "
        "distill.teacher; diff and ratio are against the same network and recipe without a "
        "teacher, if it is in the table"
    )
    names = dict.fromkeys(row.record.teacher.name for row in students if row.record.teacher)
    for name in names:
        yield f"teacher {name}: {_facts(table, students, name)}"
    shared = [row for row in students if len(row.runs) > 1 and len(_fingerprints(row)) == 1]
    if shared:
        yield (
            "one teacher for several seeds: their interval is about training the student again, "
            "not about training another teacher"
        )


def _facts(table: Table, students: list[Row], name: str) -> str:
    """Cost and accuracy of a teacher, over the runs that it taught."""
    runs = [run for row in students for run in row.runs]
    found = [t for run in runs if (t := run.record.teacher) and t.name == name]
    accuracies = {t.source: t.test_acc for t in found if t.test_acc is not None}
    trained = {t.run for t in found if t.run}
    own = [run.record for row in table.rows for run in row.runs if run.name in trained]
    seconds = [r.time.train_s for r in own if r.time.train_s is not None]
    parts = [
        found[0].macs and f"{found[0].macs / 1e6:,.2f} M MACs",
        accuracies and f"test accuracy {100 * statistics.fmean(accuracies.values()):.2f} %",
        f"its own training{f' ({statistics.fmean(seconds):.0f} s)' if seconds else ''} comes on "
        "top of its students' train s",
    ]
    return ", ".join(str(part) for part in parts if part)


def _fingerprints(row: Row) -> set[str | None]:
    return {t.fingerprint for run in row.runs if (t := run.record.teacher)}
