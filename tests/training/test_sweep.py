"""A sweep whose runs fail, whose records are damaged, or whose report cannot be made."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from dwsep_zoo import UserError
from dwsep_zoo.config import compose_settings
from dwsep_zoo.report import load_results
from dwsep_zoo.schema.record import read_record
from dwsep_zoo.sweep import Sweep


def raising(error):
    def raises(*_):
        raise error

    return raises


def test_damaged_records_are_named_and_the_other_networks_measured(run, tmp_path, capsys):
    folder = tmp_path / "sweep"
    for number, conv in enumerate(("standard", "depthwise_separable")):
        run(f"sweep/{number}", f"conv={conv}", "trainer.max_epochs=1")
    damaged = {"a": b"{", "b": b"{}", "c": b"[]", "d": b"\xff"}
    for name, content in damaged.items():
        (folder / name).mkdir()
        (folder / name / "result.json").write_bytes(content)
    sweep = Sweep(folder, [])
    assert not sweep.finish()
    assert sweep.failed == len(damaged)
    said = capsys.readouterr()
    assert "measuring the 2 networks in turns" in said.out
    assert "error" not in said.err
    text = (folder / "comparison.md").read_text()
    for name in damaged:
        assert f"{folder / name / 'result.json'}: " in text
    together = [found.record.in_turns for found in load_results([folder / "0", folder / "1"])[0]]
    assert together[0] == together[1]
    assert together[0]


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), UserError("no"), KeyError("status")])
@pytest.mark.parametrize("step", ["dwsep_zoo.sweep.compare", "dwsep_zoo.sweep.measure_together"])
def test_a_report_that_fails_is_one_line_and_a_failure(tmp_path, monkeypatch, capsys, error, step):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text('{"model": "m", "conv": "standard", "status": "finished"}')
    monkeypatch.setattr(step, raising(error))
    sweep = Sweep(tmp_path, [])
    assert not sweep.finish()
    assert sweep.failed == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    # The networks were not measured in turns; the report is there all the same.
    assert (tmp_path / "comparison.md").exists() == ("measure" in step)


def test_a_run_that_cannot_begin_is_recorded_as_failed(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "0"
    settings = compose_settings(["recipe.freeze=[nothing]", f"paths.output_dir={folder}"])
    monkeypatch.setattr("sys.argv", ["train.py"])
    folder.mkdir()
    Sweep(tmp_path, []).run_job(OmegaConf.create(settings.plain()))
    assert capsys.readouterr().err.startswith("error: recipe.freeze: the network has no 'nothing'")
    record = read_record(folder / "result.json")
    assert record.status == "failed"
    assert "recipe.freeze" in record.error
    assert json.loads((folder / "result.json").read_text())["model"] == "mobilenet_v1"
