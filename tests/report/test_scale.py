"""Reports of many runs: their work, their files and their lines."""

from __future__ import annotations

import cProfile
import io
import pstats
import subprocess
import sys

import pytest
from rich.console import Console

from dwsep_zoo.report import compare, load_results
from dwsep_zoo.report.comparison import MOST_TABLES, collect
from dwsep_zoo.report.drawn import MOST_ROWS, drawn
from dwsep_zoo.report.records import csv_text, json_text
from dwsep_zoo.report.render import markdown
from dwsep_zoo.report.table import make_tables
from dwsep_zoo.report.tex import tex_text

CONVS = ("standard", "depthwise_separable", "grouped", "blueprint")


@pytest.fixture
def write_rows(write_run):
    """Write one run for each row: four conv types at as many widths as it takes."""

    def write(number, **changes):
        for row in range(number):
            width = 1 + row // len(CONVS)
            write_run(
                f"n{number}-{row}",
                conv=CONVS[row % len(CONVS)],
                width_mult=width / 10,
                config__model__width_mult=width / 10,
                params=1000 + row,
                **{"metrics__test/acc": 0.5 + 0.0001 * (row * 7 % 1000), **changes},
            )

    return write


def calls(folders):
    """Function calls that all formats but the figures take."""
    profile = cProfile.Profile()
    with profile:
        comparison = collect(folders, folders[0])
        for text in (csv_text, tex_text):
            text(comparison.tables)
        json_text(comparison)
        markdown(comparison)
    return pstats.Stats(profile).total_calls


def test_the_work_grows_with_the_number_of_rows(write_rows, tmp_path):
    counts = {}
    for number in (4, 20, 60, 180):  # the first imports
        write_rows(number)
        counts[number] = calls(sorted((tmp_path / "runs").glob(f"n{number}-*")))
    assert (counts[180] - counts[60]) / 120 < 1.2 * (counts[60] - counts[20]) / 40


def test_figures_of_many_rows_draw_the_front_and_say_what_they_leave_out(
    write_rows, write_run, tmp_path
):
    write_rows(MOST_ROWS + 20)
    best = write_run("best", conv="mixed", **{"metrics__test/acc": 0.999}).name
    (table,), _ = make_tables(load_results([tmp_path / "runs"])[0])
    found = drawn(table)
    assert len(found) == MOST_ROWS
    assert [index for index, _ in found] == sorted({index for index, _ in found})
    assert all(table.rows[index] is row for index, row in found)
    assert best in {row.first.name for _, row in found}
    console = Console(file=io.StringIO(), width=120)
    comparison = compare([tmp_path / "runs"], tmp_path / "out", console)
    line = f"figures draw {MOST_ROWS} of the {MOST_ROWS + 21} rows"
    page = (tmp_path / "out" / "comparison.html").read_text("utf-8")
    for text in (markdown(comparison), console.file.getvalue(), page):
        assert text.count(line) == 1
    marked = {f'data-row="t1r{index}"' for index, _ in found}
    assert page.count("<tr data-row=") == MOST_ROWS + 21
    drawn_marks = page.split("<svg")[1:]
    assert any(mark in plot for plot in drawn_marks for mark in marked)


def test_many_tables_are_few_files_and_lines(write_run, tmp_path):
    number = 10
    for table in range(number):
        for conv in CONVS[:2]:
            write_run(f"{conv}-{table}", conv=conv, config__recipe__lr=0.1 + table)
    console = Console(file=io.StringIO(), width=120)
    comparison = compare([tmp_path / "runs"], tmp_path / "out", console)
    assert len(comparison.tables) == number
    pictures = [file for file in comparison.files if file.suffix == ".png"]
    assert len(pictures) == MOST_TABLES
    assert len(comparison.files) == 5 + 2 * MOST_TABLES
    printed = console.file.getvalue()
    assert f"figures are of the first {MOST_TABLES} of {number} tables" in printed
    assert printed.count("1 MAC = one multiply-add") == 1
    assert printed.count("\n") < 12 * number + 20
    for table in range(number):
        assert f"recipe.lr={0.1 + table}" in printed


def test_a_report_loads_no_pytorch(pair, tmp_path):
    code = f"""
import sys
from dwsep_zoo.report import compare
compare([{str(pair)!r}], {str(tmp_path / "out")!r})
assert not {{"torch", "lightning", "hydra", "matplotlib.pyplot"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
