"""From folders of runs to the files."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from dwsep_zoo.errors import UserError
from dwsep_zoo.report import compare


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=120)


def test_a_multirun_is_compared_in_its_own_folder(pair, console, monkeypatch):
    monkeypatch.chdir(pair.parent)
    (pair / "multirun.yaml").touch()
    comparison = compare(["runs"], console=console)
    assert comparison.folder.resolve() == pair
    names = ["comparison.md", "comparison.csv", "comparison.png"]
    assert [file.name for file in comparison.files] == names
    assert all(file.stat().st_size for file in comparison.files)
    assert len(list(pair.glob("events.out.tfevents.*"))) == 1
    printed = console.file.getvalue()
    assert "depthwise_separable  97.00" in printed
    assert "0.14x" in printed
    assert printed.endswith("look at it   tensorboard --logdir runs\n")


def test_other_runs_are_compared_below_logs(pair, console, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    comparison = compare([pair / "standard-s0", pair / "separable-s1"], console=console)
    assert re.fullmatch(r"logs/compare/[-_\d]+", comparison.folder.as_posix())
    assert (tmp_path / comparison.folder / "comparison.md").is_file()
    assert console.file.getvalue().endswith("tensorboard --logdir logs\n")
    assert len(list(pair.rglob("comparison.*"))) == 0


def test_tables_that_are_split_have_a_picture_each(write_run, tmp_path, console, as_separable):
    write_run("a")
    write_run("b", config__recipe__lr=0.1, **as_separable)
    comparison = compare([tmp_path], tmp_path / "out", console)
    assert len(comparison.tables) == 2
    assert [file.name for file in comparison.files[2:]] == ["comparison.png", "comparison2.png"]
    printed = console.file.getvalue()
    assert "not comparable with the other tables, here: recipe.lr=0.1" in printed


def test_what_is_in_no_table_is_listed(write_run, tmp_path, console):
    write_run("a")
    write_run("again", finished="2026-01-02T00:00:00+00:00")
    write_run("broken", status="failed", error="[red] out of memory")
    damaged = write_run("damaged") / "result.json"
    damaged.write_text("{")
    comparison = compare([tmp_path], tmp_path / "out", console)
    assert [run.name for run in comparison.unfinished] == ["broken"]
    assert [run.name for run in comparison.repeated] == ["a"]
    assert [problem.path for problem in comparison.problems] == [damaged]
    for text in (console.file.getvalue(), (tmp_path / "out/comparison.md").read_text("utf-8")):
        assert "broken: failed: [red] out of memory" in text
        assert str(tmp_path / "runs/a") in text
        assert f"{damaged}: Expecting" in text


def test_no_finished_run(write_run, tmp_path, console):
    write_run("broken", status="interrupted", error=None)
    comparison = compare([tmp_path], tmp_path / "out", console)
    assert comparison.tables == ()
    assert "no run has finished" in console.file.getvalue()
    assert "broken: interrupted" in console.file.getvalue()


def test_a_folder_that_cannot_be_written_is_one_line(write_run, tmp_path, console):
    write_run("a")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write") as error:
        compare([tmp_path], tmp_path / "file" / "out", console)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "file") in str(error.value)
