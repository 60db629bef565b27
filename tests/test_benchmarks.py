"""The benchmarks' records: what is good, what is worse than before, and where it is shown."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import record
from benchmarks.record import RESULTS, Ratio, Record, finish, load, parse, parser, records
from dwsep_zoo.analysis.latency import LatencyComparison

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FOLDER = Path(record.__file__).parent

FASTER = Ratio("speed", 3.0, 2.5, {"ours images/s": 300.0, "theirs images/s": 100.0})
SMALLER = Ratio("memory", 0.5, 0.7, {"ours MB": 50.0}, at_most=True)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    made = Record("name", "A claim", "Conditions.", [FASTER, SMALLER], ["--steps", "3"])
    finish(made, check=False)
    return made


def changed(made, **values):
    ratios = [dataclasses.replace(r, value=values.get(r.case, r.value)) for r in made.ratios]
    return dataclasses.replace(made, ratios=ratios)


@pytest.mark.parametrize(
    ("ratio", "met"),
    [
        (FASTER, True),
        (dataclasses.replace(FASTER, bar=3.01), False),
        (SMALLER, True),
        (dataclasses.replace(SMALLER, bar=0.49), False),
        (dataclasses.replace(FASTER, bar=None), None),
    ],
)
def test_a_bar_is_met_or_missed(ratio, met):
    assert ratio.met is met
    assert ("missed" in Record("name", "A claim", "", [ratio]).table()) is (met is False)


def test_a_record_is_read_as_it_was_written(recorded):
    assert load(recorded.path) == recorded
    assert records() == [recorded]


@pytest.mark.parametrize("values", [{}, {"speed": 2.71, "memory": 0.549}, {"speed": 9}])
def test_a_tenth_may_be_lost(recorded, values):
    finish(changed(recorded, **values), check=True)
    assert load(recorded.path) == recorded  # a check writes nothing


@pytest.mark.parametrize("values", [{"speed": 2.69}, {"memory": 0.551}])
def test_more_than_a_tenth_is_worse(recorded, values, capsys):
    with pytest.raises(SystemExit, match="3"):
        finish(changed(recorded, **values), check=True)
    ((case, value),) = values.items()
    assert f"name: {case}: {value}, was" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["speed", "memory"])
def test_a_number_that_is_none_is_worse(recorded, case, capsys):
    with pytest.raises(SystemExit, match="3"):
        finish(changed(recorded, **{case: float("nan")}), check=True)
    assert f"name: {case}: nan, was" in capsys.readouterr().out


def test_a_case_that_is_new_or_missing_fails_the_check(recorded, capsys):
    other = dataclasses.replace(FASTER, case="energy")
    with pytest.raises(SystemExit, match="3"):
        finish(dataclasses.replace(recorded, ratios=[FASTER, other]), check=True)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "name: energy: is not in the record",
        "name: memory: is recorded, but measured no more",
    ]


def options(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["benchmarks/name.py", *arguments])
    made = parser("A benchmark.")
    made.add_argument("--steps", type=int, default=12)
    made.add_argument("--rounds", type=int, default=4)
    return parse(made)


def test_a_check_has_the_options_of_the_record(recorded, monkeypatch):
    """As the page shows them."""
    assert "`python benchmarks/name.py --steps 3`" in recorded.page()
    again = options(monkeypatch, "--check", "--rounds", "1")
    assert (again.check, again.steps, again.rounds) == (True, 3, 1)
    new = options(monkeypatch, "--rounds", "1")
    assert (new.check, new.steps, new.arguments) == (False, 12, ["--rounds", "1"])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a script of the folder, which then has no records but those of the test."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr("record.RESULTS", tmp_path)

    def script(name, *arguments, run_name="__main__"):
        path = str(FOLDER / f"{name}.py")
        monkeypatch.setattr("sys.argv", [path, *arguments])
        return runpy.run_path(path, run_name=run_name)

    return script


OTHERS = {"check", "record", "turns", "depthwise_gpu", "gpu_session", "own_weights"}
SCRIPTS = sorted({path.stem for path in FOLDER.glob("*.py")} - OTHERS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_check_without_a_record_ends_before_it_measures(run, name):
    """Of all that are checked; ``depthwise_gpu`` prints tables, ``own_weights`` stores."""
    with pytest.raises(SystemExit, match=f"^{name}: nothing is recorded yet; run it without"):
        run(name, "--check")


@pytest.mark.parametrize(
    ("code", "line"),
    [(0, "all as recorded"), (3, "not as recorded: name"), (1, "could not be measured: name")],
)
def test_all_that_is_recorded_is_checked(run, recorded, code, line, monkeypatch, capsys):
    called = []

    def measure(command):
        called.append(command[1:])
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", measure)
    with pytest.raises(SystemExit, match=str(code != 0)):
        run("check")
    assert called == [[str(FOLDER / "name.py"), "--check"]]
    assert line in capsys.readouterr().out.splitlines()


def test_what_needs_a_gpu_is_left_out_where_there_is_none(run, recorded, monkeypatch, capsys):
    recorded.path.with_name("other_gpu.json").write_text(recorded.path.read_text())
    called = []

    def measure(command):
        called.append(Path(command[1]).stem)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="False"):
        run("check")
    assert called == ["name"]
    assert "no CUDA device: other_gpu" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="False"):
        run("check", "other_gpu")
    assert called == ["name", "other_gpu"]


def test_wrong_verdicts_of_the_latency_comparison_miss_the_bar(run):
    trials = run("latency_trials", run_name="latency_trials")
    kind = trials["Kind"]("same", (None, None), (3, 224, 224), 1.0, "no difference")
    right = LatencyComparison(1.01, 0.98, 1.02, "no difference")
    wrong = LatencyComparison(1.08, 1.06, 1.10, "slower")
    latency = SimpleNamespace(p50_ms=2.0)
    ratio = trials["share_of_right_verdicts"](kind, [right, right, wrong, right], latency)
    assert ratio.value == 0.75
    assert ratio.met is False
    assert ratio.figures["intervals with the true ratio inside"] == 3
    assert trials["share_of_right_verdicts"](kind, [right], latency).met is True


@pytest.fixture
def gpu_session(run):
    return SimpleNamespace(**run("gpu_session", run_name="gpu_session"))


def python(code):
    return [sys.executable, "-c", code]


def record_of(ratio, *arguments):
    """Code that writes a benchmark's record."""
    made = json.dumps(dataclasses.asdict(Record("name", "A claim", "", [ratio], arguments)))
    return f"import os; open(os.environ['BENCHMARK_RESULTS'] + '/name.json', 'w').write({made!r})"


def test_a_session_keeps_each_result_the_moment_it_is_there(gpu_session, tmp_path, capsys):
    case, output = gpu_session.Case, tmp_path / "session"
    seen = f"print(open({str(output / 'session.json')!r}).read())"
    failing = "print('[gw1] [ 4%] FAILED a.py::test_b[c d]\\n'); 1 / 0"
    hanging = (
        "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid); time.sleep(60)"
    )
    results = gpu_session.session(
        [
            case("speed", python(record_of(FASTER, "--only", "x")), 60),
            case("looking", python(seen), 60),
            case("failing", python(failing), 60),
            case("hanging", python(hanging), 0.5),
            case("memory", python(record_of(SMALLER, "--only", "y")), 60),
        ],
        output,
        minutes=10,
    )
    kept = json.loads((output / "session.json").read_text())["cases"]
    assert kept == json.loads(json.dumps(results))
    assert {name: result["status"] for name, result in kept.items()} == {
        **{"speed": "done", "looking": "done", "failing": "failed", "hanging": "cut off"},
        "memory": "done",
    }
    before = json.loads((output / "looking" / "log.txt").read_text())["cases"]
    assert before["speed"] == kept["speed"]
    assert before["looking"] == {"status": "running"}
    assert before["memory"] == {"status": "not begun"}
    assert kept["failing"]["exit_code"] == 1
    assert kept["failing"]["failed_tests"] == ["a.py::test_b[c d]"]
    assert "ZeroDivisionError" in kept["failing"]["log_ends_with"]
    child = int((output / "hanging" / "log.txt").read_text())
    with suppress(FileNotFoundError, ProcessLookupError):  # it is gone, or nobody waits for it
        assert not Path(f"/proc/{child}/cmdline").read_text()
    both = load(output / "name.json")
    assert (both.ratios, both.arguments) == ([FASTER, SMALLER], [])
    said = capsys.readouterr().out
    assert "speed: 3 (ours images/s 300, theirs images/s 100)" in said
    assert "failed: a.py::test_b[c d]" in said


def test_a_session_ends_in_time(gpu_session, tmp_path):
    case, sleep = gpu_session.Case, python("print('begun'); import time; time.sleep(60)")
    given = [
        case("first", sleep, 60, least=0),
        case("second", sleep, 60, least=1),
        case("third", sleep, 60),
    ]
    begin = time.monotonic()
    results = gpu_session.session(given, tmp_path, minutes=0.5 / 60)
    assert time.monotonic() - begin < 10
    assert results["first"]["status"] == "cut off"
    assert results["first"]["log_ends_with"] == "begun\n"
    assert results["second"] == results["third"] == {"status": "no time left"}


def test_a_session_runs_scripts_that_exist(gpu_session, tmp_path):
    """The accuracy only where there are pictures."""
    for root, count in ((tmp_path / "none", 4), (tmp_path, 5)):
        given = gpu_session.cases(root)
        assert len(given) == len({case.name for case in given}) == count
        for case in given:
            assert case.least < case.seconds
            assert case.command[1] == "-m" or Path(case.command[1]).is_file()


@pytest.mark.parametrize("made", records(), ids=lambda made: made.name)
def test_what_is_recorded_comes_from_a_script_and_is_shown(made):
    assert f'Record("{made.name}"' in (ROOT / "benchmarks" / f"{made.name}.py").read_text()
    assert made.table() in (ROOT / "docs" / "speed.md").read_text()


def tables(text):
    """The Markdown tables of a text: header and rows, as lists of cells."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        header, _, *rows = (line.strip("|").split("|") for line in table.splitlines())
        yield [[cell.strip() for cell in row] for row in (header, *rows)]


def test_the_readme_shows_columns_of_the_record():
    report = (RESULTS / "digits" / "comparison.md").read_text()
    recorded = next(tables(report))
    (shown,) = (table for table in tables(README.read_text()) if table[0][:2] == ["model", "conv"])
    assert len(shown[0]) <= 6
    columns = [recorded[0].index(name) for name in shown[0]]
    assert shown == [[row[column] for column in columns] for row in recorded]


def figures(text):
    """Numbers with a decimal point."""
    return re.findall(r"\d[\d,]*\.\d+", text)


def recorded_figures(path):
    """Numbers of a record as pages print them: a report's as they are, a benchmark's rounded."""
    if path.suffix != ".json":
        return figures(path.read_text())
    ratios = load(path).ratios
    values = [ratio.value for ratio in ratios] + [v for r in ratios for v in r.figures.values()]
    return [f"{value:,.{digits}f}" for value in values for digits in (1, 2)]


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_figures_beside_a_link_to_a_record_are_recorded(page):
    """In bullet points and paragraphs outside tables."""
    text = re.sub(
        r"^(\||<!-- \w+ [\s\S]*?<!-- end -->|```[\s\S]*?```).*$",
        "",
        (ROOT / page).read_text(),
        flags=re.M,
    )
    linked = 0
    for part in re.split(r"\n\n|\n(?=- )", text):
        found = set(re.findall(r"benchmarks/results/([\w/]+\.(?:md|html|json))", part))
        paths = [RESULTS / name for name in found]
        linked += len(paths)
        known = {figure for path in paths for figure in recorded_figures(path)}
        assert not paths or set(figures(part)) <= known
    assert linked
