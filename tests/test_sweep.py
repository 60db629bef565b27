"""A sweep: its runs, those that fail, those made once, and a report that cannot be made."""

from __future__ import annotations

import sys
from functools import partial

import pytest
from helpers import SMALL
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dwsep_zoo import UserError
from dwsep_zoo.analysis.cost import measure_cost
from dwsep_zoo.config import compose_settings
from dwsep_zoo.report import load_results
from dwsep_zoo.schema.record import read_record
from dwsep_zoo.sweep import Sweep


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    quick = partial(measure_cost, min_run_time=0.02)
    monkeypatch.setattr("dwsep_zoo.training.profile.measure_cost", quick)
    return Sweep(tmp_path / "sweep", ["-m", "conv=standard,depthwise_separable"])


def job(sweep, name, *overrides):
    """One run as Hydra starts it."""
    folder = sweep.folder / name
    composed = compose_settings([*SMALL, *overrides, f"paths.output_dir={folder}"])
    sweep.run_job(OmegaConf.create(composed.plain()))
    return folder


def test_runs_are_measured_in_turns_and_failures_and_damaged_records_are_named(sweep, capsys):
    one = ("trainer.max_epochs=1",)
    runs = [job(sweep, str(i), f"conv={c}", *one) for i, c in enumerate(["standard", "grouped"])]
    assert [found.record.in_turns for found in load_results(runs)[0]] == [None, None]
    twin = job(sweep, "2", "conv=standard", "match=macs", *one)
    assert not twin.exists()
    assert "2 would be the same run as 0: not made again" in capsys.readouterr().out
    failed = job(sweep, "3", "recipe.freeze=[nothing]")
    assert capsys.readouterr().err.startswith("error: recipe.freeze: the network has no 'nothing'")
    record = read_record(failed / "result.json")
    assert (record.status, record.model, record.conv) == (
        *("failed", "mobilenet_v1_shallow"),
        "depthwise_separable",
    )
    damaged = {"a": b"{", "b": b"{}", "c": b"[]", "d": b"\xff"}
    for name, content in damaged.items():
        (sweep.folder / name).mkdir()
        (sweep.folder / name / "result.json").write_bytes(content)
    assert not sweep.finish()
    assert sweep.failed == 1 + len(damaged)
    said = capsys.readouterr()
    assert "measuring the 2 networks in turns" in said.out
    assert "error" not in said.err
    text = (sweep.folder / "comparison.md").read_text()
    for name in damaged:
        assert f"{sweep.folder / name / 'result.json'}: " in text
    assert "3: failed: recipe.freeze: " in text
    first, second = (found.record for found in load_results(runs)[0])
    assert first.in_turns == second.in_turns
    assert first.in_turns
    for run in runs:
        events = EventAccumulator(str(run)).Reload()
        shown = events.Scalars("perf/latency_ms_p50")[-1].value
        assert shown == pytest.approx(read_record(run / "result.json").latency[0].p50_ms)
    assert first.command.endswith("conv=standard,depthwise_separable")


def test_settings_that_cannot_be_read_are_a_recorded_failure(sweep, capsys):
    folder = sweep.folder / "0"
    config = compose_settings([*SMALL, f"paths.output_dir={folder}"]).plain()
    config["recipe"]["lr"] = "fast"
    sweep.run_job(OmegaConf.create(config))
    assert capsys.readouterr().err == "error: recipe.lr must be a number; got 'fast'\n"
    assert read_record(folder / "result.json").error == "recipe.lr must be a number; got 'fast'"


def test_ddp_inside_a_sweep_is_a_recorded_failure(sweep, capsys):
    sweep.folder.mkdir()
    (sweep.folder / "multirun.yaml").touch()  # Hydra's
    folder = job(sweep, "0", "trainer.strategy=ddp")
    assert "cannot run inside -m" in capsys.readouterr().err
    assert "cannot run inside -m" in read_record(folder / "result.json").error


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), UserError("no"), KeyError("status")])
@pytest.mark.parametrize("step", ["compare", "measure_together"])
def test_a_report_that_fails_is_one_line_and_a_failure(sweep, monkeypatch, capsys, error, step):
    folder = sweep.folder / "run"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"model": "m", "conv": "standard", "status": "finished"}')

    def fail(*_):
        raise error

    monkeypatch.setattr(f"dwsep_zoo.sweep.{step}", fail)
    assert not sweep.finish()
    assert sweep.failed == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    # The networks were not measured in turns; the report is there all the same.
    assert (sweep.folder / "comparison.md").exists() == (step == "measure_together")


def test_a_sweep_says_once_where_to_look(sweep, capsys):
    sweep.folder.mkdir()
    (sweep.folder / "multirun.yaml").touch()  # Hydra's
    for seed in range(2):
        job(sweep, str(seed), "trainer.max_epochs=1", f"seed={seed}")
    assert sweep.finish()
    said = capsys.readouterr().out
    assert said.count("test accuracy ") >= 2
    assert said.count("tensorboard --logdir") == 1
    assert "run folder" not in said
