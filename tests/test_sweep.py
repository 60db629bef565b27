"""A sweep: its runs, those that fail or were cut off, those made once, and its report."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from helpers import SMALL, composed, different, last_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dwsep_zoo import UserError
from dwsep_zoo.analysis.cost import measure_cost
from dwsep_zoo.commands.train import run_train
from dwsep_zoo.config import compose_jobs, read_line
from dwsep_zoo.files import locked
from dwsep_zoo.report import compare, load_results
from dwsep_zoo.schema.process import cores
from dwsep_zoo.schema.record import read_record, update_record
from dwsep_zoo.schema.sweep import Job, read_plan, write_plan
from dwsep_zoo.sweep import AGAIN, OPEN, Sweep, check_folder, plan_of
from dwsep_zoo.sweep.together import measure_together

RUNS = Path(__file__).parent / "runs"
TRAIN = Path(__file__).parents[1] / "train.py"
WORDS = ["-m", "conv=standard,depthwise_separable"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    quick = partial(measure_cost, min_run_time=0.02)
    monkeypatch.setattr("dwsep_zoo.training.profile.measure_cost", quick)
    return tmp_path / "sweep"


def job(name, *overrides):
    config = composed(*SMALL, *overrides).plain()
    return Job(folder=name, overrides=overrides, config=config)


def made(folder, *jobs):
    """A sweep that has begun."""
    write_plan(folder, plan_of(WORDS, jobs))
    return Sweep(folder)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_runs_are_measured_in_turns_and_failures_and_damaged_records_are_named(folder, capsys):
    one = ("trainer.max_epochs=1",)
    sweep = made(
        folder,
        *(job(str(i), f"conv={c}", *one) for i, c in enumerate(["standard", "grouped"])),
        job("2", "conv=standard", "match=macs", *one),
        job("3", "recipe.freeze=[nothing]"),
    )
    assert "2 would be the same run as 0: not made again" in capsys.readouterr().out
    sweep.work()
    said = capsys.readouterr()
    assert said.err.startswith("error: recipe.freeze: the network has no 'nothing'")
    assert "3/3  3\n" in said.out
    assert not (folder / "2").exists()
    runs = [folder / name for name in "01"]
    assert [found.record.in_turns for found in load_results(runs)[0]] == [None, None]
    record = read_record(folder / "3" / "result.json")
    assert (record.status, record.model, record.conv) == (
        *("failed", "mobilenet_v1_shallow"),
        "depthwise_separable",
    )
    damaged = {"a": b"{", "b": b"{}", "c": b"[]", "d": b"\xff"}
    for name, content in damaged.items():
        (folder / name).mkdir()
        (folder / name / "result.json").write_bytes(content)
    assert not sweep.finish()
    said = capsys.readouterr()
    assert "measuring the 2 networks in turns" in said.out
    assert "error" not in said.err
    text = (folder / "comparison.md").read_text()
    for name in damaged:
        assert f"{folder / name / 'result.json'}: " in text
    assert "3: failed: recipe.freeze: " in text
    first, second = (found.record for found in load_results(runs)[0])
    assert first.in_turns == second.in_turns
    assert first.in_turns
    for run in runs:
        events = EventAccumulator(str(run)).Reload()
        shown = events.Scalars("perf/latency_ms_p50")[-1].value
        assert shown == pytest.approx(read_record(run / "result.json").latency[0].p50_ms)
    assert first.command.endswith("conv=standard,depthwise_separable")
    sweep.finish()  # again: nothing has changed since the networks were measured
    assert "measuring the" not in capsys.readouterr().out


def test_one_network_is_measured_again_if_its_runs_were_made_at_once(folder, capsys):
    for seed in range(2):
        shutil.copytree(RUNS / "finished", folder / str(seed))
        update_record(folder / str(seed) / "result.json", seed=seed, finished="2026-01-01T00:02")
    for started, again in (("2026-01-01T00:03", False), ("2026-01-01T00:01", True)):
        update_record(folder / "1" / "result.json", started=started)
        update_record(folder / "0" / "result.json", started="2026-01-01T00:00")
        measure_together(folder)
        assert ("measuring the network again" in capsys.readouterr().out) == again


def test_settings_that_cannot_be_read_are_a_recorded_failure(folder, capsys):
    wrong = job("0")
    recipe = {**wrong.config["recipe"], "lr": "fast"}
    made(folder, wrong.model_copy(update={"config": {**wrong.config, "recipe": recipe}})).work()
    assert capsys.readouterr().err == "error: recipe.lr must be a number; got 'fast'\n"
    record = read_record(folder / "0" / "result.json")
    assert record.error == "recipe.lr must be a number; got 'fast'"


def test_ddp_inside_a_sweep_is_a_recorded_failure(folder, capsys):
    made(folder, job("0", "trainer.strategy=ddp")).work()
    assert "cannot run inside -m" in capsys.readouterr().err
    assert "cannot run inside -m" in read_record(folder / "0" / "result.json").error


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), UserError("no"), KeyError("status")])
@pytest.mark.parametrize("step", ["compare", "measure_together"])
def test_a_report_that_fails_is_one_line_and_a_failure(folder, monkeypatch, capsys, error, step):
    run = folder / "run"
    run.mkdir(parents=True)
    (run / "result.json").write_text('{"model": "m", "conv": "standard", "status": "finished"}')

    def fail(*_):
        raise error

    monkeypatch.setattr(f"dwsep_zoo.sweep.runs.{step}", fail)
    assert not made(folder).finish()
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    # The networks were not measured in turns; the report is there all the same.
    assert (folder / "comparison.md").exists() == (step == "measure_together")


def test_a_sweep_says_once_where_to_look(folder, capsys):
    one = "trainer.max_epochs=1"
    sweep = made(folder, *(job(str(seed), one, f"seed={seed}") for seed in range(2)))
    sweep.work()
    assert sweep.finish()
    said = capsys.readouterr().out
    assert said.count("test accuracy ") >= 2
    assert said.count("tensorboard --logdir") == 1
    assert "run folder" not in said


@pytest.fixture
def cut_off(folder):
    """A sweep with a run of each kind; its runs are of an earlier version."""
    jobs = []
    for name in ("finished", "interrupted", "failed"):
        shutil.copytree(RUNS / name, folder / name)
        config = read_record(folder / name / "result.json").config
        jobs.append(Job(folder=name, overrides=(), config=config))
    shutil.copytree(RUNS / "interrupted", folder / "at once")
    shutil.rmtree(folder / "at once" / "checkpoints")
    jobs.append(Job(folder="at once", overrides=(), config={**jobs[1].config, "seed": 8}))
    update_record(folder / "at once" / "result.json", config=jobs[3].config)
    jobs.append(Job(folder="missing", overrides=(), config={**jobs[1].config, "seed": 9}))
    return made(folder, *jobs)


@pytest.mark.parametrize(
    ("states", "trained"),
    [
        (OPEN, {"interrupted": True, "at once": False, "missing": False}),
        (AGAIN, {"interrupted": True, "failed": False, "at once": False}),
    ],
    ids=["go on", "again"],
)
def test_what_a_sweep_that_was_cut_off_makes(cut_off, monkeypatch, states, trained):
    """And whether it goes on from a checkpoint; what is finished is left as it is."""
    found = {}

    def train(settings):
        found[Path(settings.paths.output_dir).name] = bool(settings.resume)

    monkeypatch.setattr("dwsep_zoo.sweep.runs.train", train)
    before = contents(cut_off.folder / "finished")
    cut_off.work(states)
    assert found == trained
    assert contents(cut_off.folder / "finished") == before


@pytest.mark.parametrize("states", [OPEN, AGAIN], ids=["go on", "again"])
def test_a_run_with_a_damaged_record_goes_on_by_the_plan(cut_off, monkeypatch, states):
    """From its last checkpoint; what was in the record stays beside it."""
    record = cut_off.folder / "interrupted" / "result.json"
    record.write_bytes(b"{")
    found = {}

    def train(settings):
        found[Path(settings.paths.output_dir).name] = settings.resume

    monkeypatch.setattr("dwsep_zoo.sweep.runs.train", train)
    cut_off.work(states)
    assert found["interrupted"] == str(record.parent)
    assert record.with_name("result.json.damaged").read_bytes() == b"{"
    assert read_record(record).status == "interrupted"


def test_runs_of_other_processes_are_left_to_them_and_the_last_one_reports(
    cut_off, monkeypatch, capsys
):
    found = []
    monkeypatch.setattr("dwsep_zoo.sweep.runs.train", lambda s: found.append(s.paths.output_dir))
    with locked(cut_off.folder / "interrupted" / "train.log"):
        cut_off.work()
        assert cut_off.finish()
    assert "1 more in other processes" in capsys.readouterr().out
    assert [Path(path).name for path in found] == ["at once", "missing"]
    assert not (cut_off.folder / "comparison.md").exists()


def test_a_comparison_names_the_runs_that_have_not_begun(cut_off):
    found = {run.folder.name: run.record.status for run in load_results([cut_off.folder])[0]}
    assert found["missing"] == "missing"
    assert found["at once"] == found["interrupted"] == "interrupted"
    compare([cut_off.folder], cut_off.folder)
    text = (cut_off.folder / "comparison.md").read_text()
    assert "missing: missing: it has not begun" in text
    assert "failed: failed: " in text
    write = (cut_off.folder / "sweep.json").write_text
    for content, said in (("{", "Expecting"), ("[]", "group of keys"), ('{"schema": 99}', "99")):
        write(content)
        ((problem),) = load_results([cut_off.folder])[1]
        assert problem.path.name == "sweep.json"
        assert said in problem.reason


def test_other_runs_in_the_folder_of_a_sweep_are_refused(folder):
    jobs = [job(str(seed), f"seed={seed}") for seed in range(2)]
    made(folder, *jobs)
    check_folder(folder, plan_of(["others"], jobs))
    for others in (jobs[:1], [jobs[0], job("1", "seed=2")], [jobs[0], job("2", "seed=1")]):
        with pytest.raises(UserError, match="a sweep of other runs; resume="):
            check_folder(folder, plan_of(WORDS, others))


def test_a_sweep_of_an_earlier_version_has_no_plan(folder):
    old = shutil.copytree(RUNS / "sweep", folder)
    with pytest.raises(UserError, match=r"no sweep\.json\); one of an earlier version"):
        read_plan(folder)
    names = [path.parent.name for path in old.glob("*/result.json")]
    configs = {name: read_record(old / name / "result.json").config for name in names}
    same = [Job(folder=name, overrides=(), config=config) for name, config in configs.items()]
    check_folder(folder, plan_of(WORDS, same))
    other = same[0].model_copy(update={"config": {**same[0].config, "seed": 7}})
    with pytest.raises(UserError, match="cannot change seed"):
        check_folder(folder, plan_of(WORDS, [other]))


def test_the_plan_has_every_combination_and_yaml_may_give_some(tmp_path):
    own = tmp_path / "experiment" / "mine.yaml"
    own.parent.mkdir()
    own.write_text("# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 4,5\n")
    line = read_line(["experiment=mine", "recipe.lr=0.1,0.2", "tags=[a]"], str(tmp_path))
    jobs = compose_jobs(line, ["seed=4,5"])
    assert [(j.config["seed"], j.config["recipe"]["lr"]) for j in jobs] == [
        *((4, 0.1), (4, 0.2), (5, 0.1), (5, 0.2)),
    ]
    assert [j.folder for j in jobs] == [
        f"{number}-mobilenet_v1-depthwise_separable-s{seed}"
        for number, seed in enumerate([4, 4, 5, 5])
    ]
    assert jobs[1].overrides == ("seed=4", "experiment=mine", "recipe.lr=0.2", "tags=[a]")
    seeds = [j.config["seed"] for j in compose_jobs(read_line(["seed=1"]), ["seed=4,5"])]
    assert seeds == [1]  # of the command line


@pytest.mark.slow
@pytest.mark.skipif(len(cores()) < 2, reason="needs two cores")
def test_a_sweep_that_was_killed_ends_as_one_that_was_not(folder, monkeypatch):
    """Two processes at once; they stop by themselves when the first one is killed."""
    monkeypatch.chdir(folder.parent)
    command = [sys.executable, str(TRAIN)]
    long = [o for o in SMALL if not o.startswith("trainer.max_epochs")]
    words = ["-m", *long, "trainer.max_epochs=20", "seed=0,1,2", "trainer.accelerator=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *words, "--jobs", "2", f"hydra.sweep.dir={folder}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(folder.glob("*/checkpoints/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    sweep = Sweep(folder)
    while "at work" in {sweep.state(one) for one in sweep.plan.jobs}:
        time.sleep(0.1)
    assert {sweep.state(one) for one in sweep.plan.jobs} & {"interrupted", "missing"}
    subprocess.run([*command, f"resume={folder}"], env=environment, check=True)
    assert {sweep.state(one) for one in sweep.plan.jobs} == {"finished"}
    assert (folder / "comparison.md").exists()
    run_train([*words[1:-2], "seed=0", "trainer.accelerator=cpu", "paths.output_dir=whole"])
    (first,) = folder.glob("0-*")
    assert different(last_weights(Path("whole")), last_weights(first)) == []
