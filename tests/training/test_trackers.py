"""Trackers: a small Trackio that writes down what it is told, and MLflow itself where it is."""

from __future__ import annotations

import json
import sys

import pytest
from helpers import composed

from dwsep_zoo import UserError
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.trackers import ID_FILE, check_tracker

TRACKIO = """
import json
from pathlib import Path

HERE = Path(__file__).parent
BROKEN = HERE / "broken"

def tell(*what):
    if BROKEN.exists() and what[0] in BROKEN.read_text().split():
        raise ConnectionError("no route to host\\nat all")
    with (HERE / "told.jsonl").open("a") as file:
        file.write(json.dumps(what) + "\\n")

class Image(str):
    pass

class Run:
    def __init__(self):
        self.config = {}
    def log(self, metrics, step=None):
        tell("log", metrics, step, self.config)
    def finish(self):
        tell("finish")

def taken(project, name):
    file = HERE / "told.jsonl"
    lines = map(json.loads, file.read_text().splitlines()) if file.exists() else []
    return any(line[:3] == ["init", project, name] for line in lines)

def init(project, name, **options):
    if options["resume"] == "never" and taken(project, name):
        name += "-2"
    tell("init", project, name, options)
    run = Run()
    run.name = name
    return run
"""


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    """Puts the small Trackio in place; returns what it was told and how to break parts of it."""
    place = tmp_path / "packages"
    place.mkdir()
    (place / "trackio.py").write_text(TRACKIO)
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)

    def told():
        file = place / "told.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    told.broken = lambda *parts: (place / "broken").write_text(" ".join(parts))
    yield told
    sys.modules.pop("trackio", None)


def values(told, key):
    return [(line[1][key], line[2]) for line in told() if line[0] == "log" and key in line[1]]


@pytest.mark.parametrize("name", ["mlflow", "wandb", "trackio"])
def test_a_missing_package_is_one_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    settings = composed(f"logger={name}").logger
    with pytest.raises(UserError, match=rf'logger={name} .*: pip install "dwsep-zoo\[{name}\]"'):
        check_tracker(settings)


def test_a_run_and_its_continuation_are_one_run_there(trackio, run, tmp_path):
    """Also the pictures; the second process knows the name of the first by the run's folder."""
    small = ("logger=trackio", "logger.pictures=true", "data.batch_size=32", "task_name=mine")
    result = run("run", *small, "trainer.max_epochs=1")
    first = trackio()
    assert [line[0] for line in first if line[0] != "log"] == ["init", "finish"]
    assert first[0][1] == "mine"
    config = first[1][3]
    assert config["recipe"]["lr"] == result["config"]["recipe"]["lr"]
    assert [step for _, step in values(trackio, "val/acc")] == [3]
    assert values(trackio, "test/acc")[-1] == (result["metrics"]["test/acc"], 4)
    pictures = {key for line in first if line[0] == "log" for key in line[1]}
    assert {"confusion", "curves"} <= pictures
    assert json.loads((tmp_path / "run" / ID_FILE).read_text())["run"] == first[0][2]
    run("run", f"resume={tmp_path / 'run'}", "trainer.max_epochs=2", "logger.pictures=false")
    second = trackio()[len(first) :]
    assert second[0][:3] == first[0][:3]
    assert (first[0][3]["resume"], second[0][3]["resume"]) == ("never", "allow")
    assert [step for _, step in values(trackio, "val/acc")] == [3, 7]


def test_a_run_that_begins_anew_is_another_one_there(trackio, run, tmp_path, monkeypatch):
    """In the folder of one that failed before its first checkpoint."""
    with monkeypatch.context() as patch:
        patch.setattr(LitClassifier, "on_train_epoch_end", lambda self: 1 / 0, raising=False)
        with pytest.raises(ZeroDivisionError):
            run("run", "logger=trackio")
    assert (tmp_path / "run" / ID_FILE).exists()
    run("run", "logger=trackio")
    first, second = (line for line in trackio() if line[0] == "init")
    assert first[3]["resume"] == second[3]["resume"] == "never"
    assert second[2] != first[2]
    assert json.loads((tmp_path / "run" / ID_FILE).read_text())["run"] == second[2]


@pytest.mark.parametrize("broken", [("init",), ("log", "finish")])
def test_a_tracker_that_is_down_is_one_warning(broken, trackio, run, tmp_path):
    trackio.broken(*broken)
    result = run("run", "logger=trackio")
    assert result["status"] == "finished"
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("trackio failed: ConnectionError: no route to host\n") == 1
    assert log.count("the training goes on") == 1


def test_a_tracker_hears_of_a_run_that_fails(trackio, run, stopped_in):
    with stopped_in(1, 0):
        run("run", "logger=trackio")
    assert trackio()[-1] == ["finish"]


@pytest.mark.filterwarnings("ignore")
def test_mlflow(run, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logs = tmp_path / "logs"
    small = (f"paths.log_dir={logs}", "logger=mlflow", "logger.pictures=true", "task_name=mine")
    result = run("run", *small, "trainer.max_epochs=1")
    run("run", f"resume={tmp_path / 'run'}", "trainer.max_epochs=2")
    client = MlflowClient(f"sqlite:///{logs}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"
    assert found.data.params["recipe/lr"] == str(result["config"]["recipe"]["lr"])
    history = client.get_metric_history(found.info.run_id, "val/acc")
    assert [point.step for point in history][:2] == [3, 7]
    assert {"confusion.png", "curves.png"} <= {
        file.path for file in client.list_artifacts(found.info.run_id)
    }


@pytest.mark.filterwarnings("ignore")
def test_mlflow_without_its_server(run, tmp_path):
    """Nobody listens on port 9 of this machine."""
    pytest.importorskip("mlflow")
    result = run("run", "logger=mlflow", "logger.uri=http://127.0.0.1:9", "trainer.max_epochs=1")
    assert result["status"] == "finished"
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("mlflow failed") == 1
