"""The pictures and probabilities that a run leaves, and ``dwsep inspect``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import load_data
from helpers import different, last_weights
from PIL import Image
from sklearn.metrics import f1_score, recall_score

import dwsep_zoo
from dwsep_zoo.cli import main
from dwsep_zoo.data.augment import normalise
from dwsep_zoo.report.figures.panel import Drawing
from dwsep_zoo.report.pictures import PICTURES as PICTURES_OF_A_RUN
from dwsep_zoo.report.pictures import RunParts
from dwsep_zoo.report.predictions import MOST_CLASSES, TOP, read_predictions
from dwsep_zoo.training.predictions import predicted

RUNS = Path(__file__).parents[1] / "runs"
PICTURES = {
    f"{name}.png" for name in ("batch", "confusion", "mistakes", "curves", "filters", "recipe")
}


def pictures(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png")}


def inspected(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[set[str], str]:
    """Names of the files that were drawn, and the lines about the others."""
    capsys.readouterr()
    main(["inspect", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    made = {Path(line).name for line in lines if line.startswith(str(folder))}
    return made, "\n".join(line for line in lines if not line.startswith(str(folder)))


def test_pictures_change_nothing_and_are_drawn_again(run, tmp_path, capsys):
    without = run("without", "trainer.limit_train_batches=2")
    result = run("run", "trainer.limit_train_batches=2", "logger.pictures=true")
    folder = tmp_path / "run"
    assert pictures(folder) == PICTURES
    assert result["metrics"] == without["metrics"]
    assert different(last_weights(folder), last_weights(tmp_path / "without")) == []
    (line,) = [x for x in (folder / "train.log").read_text().splitlines() if "batch.png" in x]
    assert all(name in line for name in PICTURES)

    before = {}
    for name in PICTURES:
        with Image.open(folder / name) as image:
            before[name] = np.asarray(image)
        (folder / name).unlink()
    record = (folder / "result.json").read_bytes()
    assert inspected(folder, capsys) == (PICTURES, "")
    for name, pixels in before.items():
        with Image.open(folder / name) as image:
            assert np.array_equal(np.asarray(image), pixels), name
    assert (folder / "result.json").read_bytes() == record


def test_a_run_keeps_what_the_tested_network_said(run, tmp_path):
    result = run("run")
    kept = read_predictions(tmp_path / "run" / "predictions.npz")
    data = load_data()
    images = data.splits["test"]
    assert kept.class_names == tuple(data.class_names)
    assert kept.name.tolist() == images.names
    x = normalise(images.pixels.permute(0, 3, 1, 2), data.mean, data.std)
    model = dwsep_zoo.load(tmp_path / "run")
    with torch.inference_mode():
        want = model(x).softmax(1)
    assert kept.probability.dtype == np.float16
    np.testing.assert_allclose(kept.probability, want, rtol=2e-3, atol=1e-5)
    recall = recall_score(kept.label, kept.predicted, average=None)
    found = result["per_class"]
    assert found["accuracy"] == pytest.approx(recall.tolist())
    assert found["balanced_acc"] == pytest.approx(recall.mean())
    f1 = f1_score(kept.label, kept.predicted, average="macro")
    assert found["macro_f1"] == pytest.approx(f1)
    assert sum(found["images"]) == len(images)


@pytest.mark.parametrize("num_classes", [2, MOST_CLASSES, MOST_CLASSES + 1])
def test_the_probabilities_that_are_kept(num_classes):
    logits = torch.randn(7, num_classes) * 4
    found = predicted(logits)
    every = logits.softmax(1)
    assert torch.equal(found["predicted"], logits.argmax(1))
    if num_classes <= MOST_CLASSES:
        assert torch.equal(found["probability"], every.half())
        assert "top" not in found
    else:
        assert found["top"].shape == found["probability"].shape == (7, TOP)
        assert torch.equal(found["top"][:, 0], found["predicted"])
        assert torch.equal(found["probability"], every.gather(1, found["top"]).half())


def test_a_picture_that_cannot_be_drawn_is_a_warning(run, tmp_path):
    folder = tmp_path / "run"
    (folder / "confusion.png").mkdir(parents=True)
    (folder / "filters.png").mkdir()
    result = run("run", "logger.pictures=true", "trainer.max_epochs=1")
    assert result["status"] == "finished"
    log = (folder / "train.log").read_text()
    for name in ("confusion.png", "filters.png"):
        assert f"WARNING {name} could not be drawn: " in log


def test_a_run_that_is_stopped_while_it_draws_is_finished(run, tmp_path, monkeypatch):
    def stop(parts: RunParts) -> Drawing:
        raise KeyboardInterrupt

    monkeypatch.setitem(PICTURES_OF_A_RUN, "curves", stop)
    with pytest.raises(SystemExit) as ended:
        run("run", "logger.pictures=true", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    assert ended.value.code == 130
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["error"]) == ("finished", None)
    assert "dwsep inspect" in (tmp_path / "run" / "train.log").read_text()


@pytest.fixture
def copied(tmp_path):
    """Copies one of the recorded runs, which no test may change."""
    return lambda name: shutil.copytree(RUNS / name, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "lacking", "reason"),
    [
        ("finished", {"mistakes.png"}, "is of an older version, without probabilities"),
        ("interrupted", {"mistakes.png", "confusion.png"}, "which is interrupted, has no predict"),
    ],
)
def test_runs_of_an_earlier_version_are_inspected(copied, capsys, name, lacking, reason):
    folder = copied(name)
    made, lines = inspected(folder, capsys)
    assert made == pictures(folder) == PICTURES - lacking
    assert lines.count("\n") == len(lacking) - 1
    assert reason in lines


def test_what_is_gone_is_said_once_for_each_picture(copied, capsys):
    folder = copied("finished")
    shutil.rmtree(folder / "checkpoints")
    values = json.loads((folder / "result.json").read_text())
    values["config"]["data"] |= {"name": "folder", "root": str(folder / "nowhere")}
    (folder / "result.json").write_text(json.dumps(values))
    made, lines = inspected(folder, capsys)
    assert made == {"confusion.png", "curves.png", "recipe.png"}
    assert "batch.png: not drawn: data.root=" in lines
    assert "filters.png: not drawn: there is no checkpoint of the run" in lines

    values["config"]["data"] |= {"name": "digits", "root": None, "split_seed": 5}
    (folder / "result.json").write_text(json.dumps(values))
    _, lines = inspected(folder, capsys)
    assert "batch.png: not drawn: data=digits has other images here than the run had" in lines


def bare(folder: Path) -> None:
    for path in ("metrics.csv", "predictions.npz"):
        (folder / path).unlink()
    shutil.rmtree(folder / "checkpoints")
    values = json.loads((folder / "result.json").read_text())
    values["config"]["data"] |= {"name": "folder", "root": str(folder / "nowhere")}
    values["network"] = {}
    (folder / "result.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bare, "no picture could be drawn"),
        (lambda folder: (folder / "result.json").unlink(), "not the folder of a run (it has no"),
        (lambda folder: (folder / "result.json").write_text("{"), "it is not JSON"),
        (lambda folder: (folder / "result.json").write_text('{"schema": 99}'), "its schema is 99"),
    ],
)
def test_a_folder_without_anything_to_draw_ends_with_2(copied, capsys, change, message):
    folder = copied("finished")
    change(folder)
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(folder)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert pictures(folder) == set()


@pytest.mark.parametrize("words", [[], ["a", "b"], ["size=3"], ["nowhere"]])
def test_lines_that_name_no_run(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["inspect", *words])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
