"""What happens when the runs of a sweep fail, and when its report does."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from dwsep_zoo import UserError
from dwsep_zoo.config import ComparisonCallback, _task, compose_config
from dwsep_zoo.report import load_results


@pytest.fixture(autouse=True)
def count(monkeypatch):
    """Nothing has failed yet, and no run was made."""
    monkeypatch.setattr(ComparisonCallback, "failed", 0)
    monkeypatch.setattr("dwsep_zoo.config._made", {})


def end(folder):
    ComparisonCallback().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": folder}}}))


def raising(error):
    def raises(*_):
        raise error

    return raises


def test_damaged_records_are_named_and_the_other_networks_measured(run, tmp_path, capsys):
    sweep = tmp_path / "sweep"
    for number, conv in enumerate(("standard", "depthwise_separable")):
        run(f"sweep/{number}", f"conv={conv}", "trainer.max_epochs=1")
    assert [found.turns for found in load_results([sweep])[0]] == [None, None]
    damaged = {"a": "{", "b": "{}", "c": "[]", "d": b"\xff"}
    for name, text in damaged.items():
        (sweep / name).mkdir()
        content = text if isinstance(text, bytes) else text.encode()
        (sweep / name / "result.json").write_bytes(content)
    (sweep / "e").mkdir()
    record = json.loads((sweep / "0" / "result.json").read_text())
    del record["status"]
    (sweep / "e" / "result.json").write_text(json.dumps(record | {"name": "e"}))
    end(str(sweep))
    said = capsys.readouterr()
    assert "measuring the 2 networks in turns" in said.out
    assert "error" not in said.err
    text = (sweep / "comparison.md").read_text()
    for name in damaged:
        assert f"{sweep / name / 'result.json'}: " in text
    assert "e: unknown" in text
    assert ComparisonCallback.failed == 5
    together = [found.turns for found in load_results([sweep / "0", sweep / "1"])[0]]
    assert together[0] == together[1]
    assert together[0]


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), UserError("no"), KeyError("status")])
@pytest.mark.parametrize(
    "step", ["dwsep_zoo.report.compare", "dwsep_zoo.training.profile.profile_side_by_side"]
)
def test_a_report_that_fails_is_one_line_and_a_failure(tmp_path, monkeypatch, capsys, error, step):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text('{"model": "m", "conv": "standard", "status": "finished"}')
    monkeypatch.setattr(step, raising(error))
    end(str(tmp_path))
    assert ComparisonCallback.failed == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    # The networks were not measured in turns; the report is there all the same.
    assert (tmp_path / "comparison.md").exists() == ("profile" in step)


def test_a_run_that_left_no_record_is_said_and_a_failure(tmp_path, monkeypatch, capsys):
    cfg = OmegaConf.create(compose_config([f"paths.output_dir={tmp_path / 'run'}"]))
    multirun = SimpleNamespace(mode=RunMode.MULTIRUN)
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: multirun))
    monkeypatch.setattr("dwsep_zoo.training.train", raising(RuntimeError("no folder")))
    _task(cfg)
    assert ComparisonCallback.failed == 1
    assert capsys.readouterr().err == "error: RuntimeError: no folder\n"


def test_ddp_inside_a_sweep_is_a_recorded_failure(run, tmp_path):
    (tmp_path / "multirun.yaml").touch()
    with pytest.raises(UserError, match="cannot run inside -m"):
        run("run", "trainer.strategy=ddp")
    ((found,), _) = load_results([tmp_path])
    assert found.status == "failed"
    assert "cannot run inside -m" in found.error
