"""A comparison for the terminal and as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from dwsep_zoo.report import words
from dwsep_zoo.report.columns import (
    Column,
    columns,
    group_ends,
    latency_columns,
    statistics_columns,
)
from dwsep_zoo.report.comparison import MOST_TABLES, Comparison
from dwsep_zoo.report.table import Table
from dwsep_zoo.terminal import fold

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

MOST_LINES, MOST_LATENCIES = 24, 100  # that the terminal shows of a table


def show(comparison: Comparison, console: Console) -> None:
    """Print every table with the sentences below it."""
    if scope := words.scope(comparison.options):
        say(console, scope)
    if not comparison.tables:
        say(console, words.NO_RUN)
    legends = [words.legend(table) for table in comparison.tables]
    common = [line for line in legends[0] if all(line in own for own in legends)] if legends else []
    for table, legend in zip(comparison.tables, legends, strict=True):
        own = [line for line in legend if line not in common] if len(legends) > 1 else legend
        _show_table(table, own, console, short=len(legends) > MOST_TABLES)
    if len(legends) > 1:
        say(console, "\nof all tables", "bold")
        for line in common:
            say(console, line, "dim")
    for title, lines in words.remarks(comparison):
        say(console, f"\n{title}", "bold")
        for line in lines:
            say(console, f"  {line}")


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line, folded between words on a terminal and as it is elsewhere."""
    text = fold(text, console.width) if console.is_terminal else text
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _show_table(table: Table, legend: Sequence[str], console: Console, *, short: bool) -> None:
    """Print a table; ``short``: without what ``comparison.md`` has and the table shows."""
    say(console, "")
    say(console, words.heading(table), "bold")
    if line := words.distinction(table):
        say(console, line)
    wide = rich_table(table)
    # A measure of its own would end at the console's width.
    needed = console.measure(wide, options=console.options.update_width(1000)).maximum
    console.print(wide if needed <= console.width else rich_table(table, dense=True))
    warnings, verdicts = words.warnings(table), [] if short else words.verdicts(table)
    for lines, what, style in ((verdicts, "verdicts", ""), (warnings, "warnings", "yellow")):
        for line in lines[:MOST_LINES]:
            say(console, line, style)
        if more := len(lines[MOST_LINES:]):
            say(console, f"and {more} more {what}, see comparison.md", "dim")
    if short:
        return
    latencies = rich_latencies(table)
    if latencies and latencies.row_count <= MOST_LATENCIES:
        say(console, "\nlatency of one batch", "bold")
        console.print(latencies)
    elif latencies:
        say(console, f"latency under {len(table.conditions)} conditions: see comparison.md", "dim")
    for line in legend:
        say(console, line, "dim")


def rich_table(table: Table, *, dense: bool = False) -> RichTable:
    """For the terminal: about 140 characters wide for the usual names, ``dense`` about 100."""
    rich = _rich(columns(table, dense=dense), group_ends(table), gap=0 if dense else 1)
    for column in rich.columns:
        column.style = "dim" if column.header == "ratio" else ""
    return rich


def rich_latencies(table: Table) -> RichTable | None:
    """The latencies under all conditions; ``None`` if there is only one, which the table has."""
    if len(table.conditions) < 2:
        return None
    parts = latency_columns(table)
    conditions = [c.cells for c in parts[: [c.heading for c in parts].index("network")]]
    lines = zip(*conditions, strict=True)
    return _rich(parts, [*(a != b for a, b in pairwise(lines)), False], gap=1)


def _rich(parts: Sequence[Column], ends: Sequence[bool], gap: int) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    rich = RichTable(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False)
    for column in parts:
        rich.add_column(
            column.heading.replace(" ", "\n", 1) if column.is_number else column.heading,
            justify="right" if column.is_number else "left",
            overflow="fold",
        )
    for index, end in enumerate(ends):
        rich.add_row(*(column.cells[index] for column in parts), end_section=end)
    return rich


def markdown(comparison: Comparison) -> str:
    """The whole comparison; the tables are aligned also for a reader of the plain text."""
    blocks = ["# Comparison", words.scope(comparison.options)]
    if not comparison.tables:
        blocks.append(words.NO_RUN)
    every = zip(comparison.tables, comparison.profiles, comparison.classes, strict=True)
    for table, measured, pairs in every:
        blocks += [f"## {words.heading(table)}", words.distinction(table)]
        blocks += [markdown_table(columns(table)), _list(words.verdicts(table))]
        if warnings := words.warnings(table):
            blocks += ["**Warnings**", _list(warnings)]
        if latencies := latency_columns(table):
            blocks += ["### Latency of one batch", markdown_table(latencies)]
        lines = []
        for profile in measured:
            if own := [*profile.sentences, *profile.warnings]:
                lines += [*own, f"layer by layer, one batch, on {profile.conditions}"]
        if lines:
            blocks += ["### Where the time goes", _list(lines)]
        if statistics := statistics_columns(table):
            blocks += ["### Statistics of the accuracy, in points", markdown_table(statistics)]
            blocks.append(_list(words.statistics_legend(table)))
        for pair in pairs:
            blocks += [f"### By class: {pair.title}", markdown_table(pair.columns)]
            blocks.append(_list(pair.sentences))
        blocks += ["### Legend", _list(words.legend(table))]
    for title, lines in words.remarks(comparison):
        blocks += [f"## {title}", _list(lines)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def markdown_table(parts: Sequence[Column]) -> str:
    lines = []
    for column in parts:
        width = max(3, *map(len, (column.heading, *column.cells)))
        rule = "-" * (width - 1) + ":" if column.is_number else "-" * width
        cells = (cell.replace("|", "\\|") for cell in column.cells)
        texts = [column.heading, rule, *cells]
        lines.append([t.rjust(width) if column.is_number else t.ljust(width) for t in texts])
    return "\n".join("| " + " | ".join(line) + " |" for line in zip(*lines, strict=True))


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
