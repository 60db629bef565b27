"""Runs of an earlier version, ``tests/runs``: they load, compare, predict and go on."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import load_data

import dwsep_zoo
from dwsep_zoo import UserError
from dwsep_zoo.data.augment import normalise
from dwsep_zoo.report import compare, load_results
from dwsep_zoo.report.comparison import collect
from dwsep_zoo.report.records import csv_text
from dwsep_zoo.schema.record import SCHEMA
from dwsep_zoo.schema.settings import parse_settings
from dwsep_zoo.training import check, resume_settings

RUNS = Path(__file__).parents[1] / "runs"
ALL = sorted(file.parent for file in RUNS.rglob("result.json"))


@pytest.fixture
def copied(tmp_path):
    """Copies one of the folders, which no test may change."""
    return lambda name: shutil.copytree(RUNS / name, tmp_path / name)


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.name)
def test_every_record_and_its_settings_are_read(folder):
    written = json.loads((folder / "result.json").read_text())
    ((found,), problems) = load_results([folder])
    assert problems == []
    assert (found.record.status, found.record.model) == (written["status"], written["model"])
    assert found.record.params == written.get("params")
    assert dict(found.record.metrics) == written.get("metrics", {})
    settings = parse_settings(found.record.config)
    assert settings.recipe.lr == written["config"]["recipe"]["lr"]
    assert (
        settings.data.augment.crop_padding == written["config"]["data"]["augment"]["crop_padding"]
    )
    assert resume_settings(folder).recipe == settings.recipe


def test_all_of_them_are_compared(tmp_path):
    comparison = compare([RUNS], tmp_path / "all")
    assert comparison.problems == ()
    assert {found.record.status for found in comparison.unfinished} == {"failed", "interrupted"}


def test_their_table_is_what_it_was(copied):
    folder = copied("sweep")
    before = (folder / "comparison.csv").read_text()
    after = csv_text(collect([folder], folder, None).tables)
    for old, new in zip(*(csv.DictReader(io.StringIO(t)) for t in (before, after)), strict=True):
        assert {key: new[key] for key in old} == {key: cut_off(key, old[key]) for key in old}


def cut_off(column, text):
    """Intervals once went on where no accuracy can be."""
    if not column.endswith(("_low", "_high")) or not text:
        return text
    least = 0.0 if column.startswith("test_acc") else -1.0
    return text if least <= float(text) <= 1 else str(min(max(float(text), least), 1.0))


@pytest.mark.parametrize("name", ["finished", "finetuned"])
def test_their_networks_predict_what_they_predicted(name):
    model = dwsep_zoo.load(RUNS / name)
    kept = np.load(RUNS / name / "predictions.npz")
    data = load_data()
    images = data.splits["test"]
    assert kept["label"].tolist() == images.labels.tolist()
    x = normalise(images.pixels.permute(0, 3, 1, 2), data.mean, data.std)
    with torch.inference_mode():
        assert kept["predicted"].tolist() == model(x).argmax(1).tolist()


def epochs_of(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "change", "epochs"),
    [("interrupted", (), 4), ("finished", ("trainer.max_epochs=4", "profile.roofline=false"), 4)],
)
def test_they_go_on(run, copied, name, change, epochs):
    folder = copied(name)
    before = epochs_of(folder)
    result = run(name, f"resume={folder}", *change)
    assert (result["status"], result["schema"], result["epochs"]) == ("finished", SCHEMA, epochs)
    after = epochs_of(folder)
    assert len(after) == epochs
    for old, new in zip(before, after, strict=False):  # there may be new columns
        assert {key: new[key] for key in old} == old
    assert result["metrics"]["test/acc"] > 0.9


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.name)
def test_those_that_cannot_go_on_say_why(folder):
    finished = json.loads((folder / "result.json").read_text())["status"] == "finished"
    if folder.name == "interrupted":
        assert check(resume_settings(folder)).start.epochs == 2
        return
    with pytest.raises(UserError, match="is finished" if finished else "there is no checkpoint"):
        check(resume_settings(folder))
