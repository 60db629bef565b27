"""From folders of runs to the files."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from dwsep_zoo.cli import main
from dwsep_zoo.errors import UserError
from dwsep_zoo.report import Options, compare
from dwsep_zoo.schema.roofline import Bandwidth, KindTime, LayerTime, NetworkTime, Peaks, Roofline


def roofline(name: str, *, runs: int = 10) -> dict[str, Any]:
    """The entry of ``result.json`` for one network."""
    layer = LayerTime("stem.conv", "stem", 1000, 500, 4.0, 1.5, "memory", 0.5)
    kind = KindTime("stem", 1, 1000, 500, 1.5, "memory", 0.5)
    return Roofline(
        device="cpu",
        device_name="Test CPU",
        threads=2,
        batch_size=1,
        input_size=(1, 32, 32),
        precision="fp32",
        memory_format="channels_last",
        runtime="eager",
        runs=runs,
        peaks=Peaks(100.0, (Bandwidth(1 << 18, 20.0), Bandwidth(1 << 26, 5.0)), {}),
        networks=(NetworkTime(name, 1.5, 1.6, (layer,), (kind,)),),
    ).plain()


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=120)


def test_a_multirun_is_compared_in_its_own_folder(pair, console, monkeypatch):
    monkeypatch.chdir(pair.parent)
    (pair / "multirun.yaml").touch()
    comparison = compare(["runs"], console=console)
    assert comparison.folder.resolve() == pair
    names = [
        f"comparison.{suffix}" for suffix in ("md", "csv", "json", "tex", "html", "png", "svg")
    ]
    assert [file.name for file in comparison.files] == names
    assert all(file.stat().st_size for file in comparison.files)
    assert len(list(pair.glob("events.out.tfevents.*"))) == 1
    printed = console.file.getvalue()
    assert re.search(r"depthwise_separable +97\.00 \[84\.29, 100\.00\]", printed)
    assert re.search(r"separable against standard: n=2: .*-0\.50.* \[-6\.85, \+5\.85\]", printed)
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
    assert [file.name for file in comparison.files if file.suffix in (".png", ".svg")] == [
        "comparison.png",
        "comparison.svg",
        "comparison2.png",
        "comparison2.svg",
    ]
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
        assert f"{damaged}: it is not JSON" in text


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


def test_options_reach_every_table(pair, tmp_path, console):
    options = Options(reference="depthwise_separable", where={"seed": ("0",)})
    comparison = compare([pair], tmp_path / "out", console, options=options)
    (table,) = comparison.tables
    assert {run.record.seed for row in table.rows for run in row.runs} == {0}
    assert [row.is_reference for row in table.rows] == [True, False]
    printed = console.file.getvalue()
    assert "only runs with seed=0" in printed
    assert re.search(r"standard against depthwise_separable: n=1: .*\+1\.00 points", printed)


def test_damaged_files_beside_the_result_are_named(pair, tmp_path, console):
    for name in ("metrics.csv", "predictions.npz"):
        (pair / "standard-s0" / name).write_bytes(b"\xff")
    comparison = compare([pair], tmp_path / "out", console)
    assert [problem.path.name for problem in comparison.problems] == [
        "metrics.csv",
        "predictions.npz",
    ]
    assert comparison.tables[0].rows[0].accuracy.n == 3


def test_networks_that_were_measured_together_are_one_roofline(
    write_run, tmp_path, console, as_separable
):
    write_run("a0", roofline=roofline("x"))
    write_run("a1", seed=1, roofline=roofline("y"))
    write_run("b0", roofline=roofline("z"), **as_separable)
    write_run("c0", roofline=roofline("later", runs=11), conv="mixed")
    write_run("d0", roofline={"device": "cpu"}, conv="grouped")
    comparison = compare([tmp_path / "runs"], tmp_path / "out", console)
    names = [file.name for file in comparison.files if file.suffix == ".svg"]
    assert names == ["comparison.svg", "roofline.svg", "roofline2.svg"]
    first, second = ((tmp_path / "out" / name).read_text("utf-8") for name in names[1:])
    assert "depthwise_separable" in first
    assert "standard" in first
    assert "mixed" in second
    (problem,) = comparison.problems
    assert problem.path == tmp_path / "runs/d0/result.json"
    assert "roofline" in problem.reason


def test_a_figure_is_the_same_file_each_time_and_its_words_are_text(pair, tmp_path, console):
    texts = []
    for name in ("one", "two"):
        compare([pair], tmp_path / name, console)
        texts.append((tmp_path / name / "comparison.svg").read_text("utf-8"))
    assert texts[0] == texts[1]
    assert ">test accuracy, %</text>" in texts[0]


def test_command_line(pair, tmp_path, capsys):
    main(["compare", str(pair), f"out={tmp_path / 'out'}", "conv=standard", "by=conv,width_mult"])
    assert "only runs with conv=standard" in capsys.readouterr().out
    assert (tmp_path / "out" / "comparison.tex").is_file()


@pytest.mark.parametrize("argument", ["match=null", "match=none", "match=[null]"])
def test_runs_without_a_match(write_run, as_matched, tmp_path, capsys, argument):
    write_run("a")
    write_run("b", **as_matched)
    main(["compare", str(tmp_path / "runs"), f"out={tmp_path / 'out'}", argument])
    (table,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["tables"]
    assert [row["label"] for row in table["rows"]] == ["standard"]
    assert "only runs with match=n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("conv=standart", "unknown conv 'standart'; did you mean 'standard'"),
        ("modle=a", "unknown key 'modle'; did you mean 'model'"),
        ("by=convs", "unknown field of by 'convs'; did you mean 'conv'"),
        ("reference=mixed", "unknown reference 'mixed'"),
        ("width_mult=0.5", "unknown width_mult '0.5'; choices: 1"),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(pair, tmp_path, capsys, argument, message):
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(pair), f"out={tmp_path / 'out'}", argument])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
