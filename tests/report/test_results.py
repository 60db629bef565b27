"""Reading result.json, whole and damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dwsep_zoo.errors import UserError
from dwsep_zoo.report import load_results


def test_reads_what_training_writes(write_run, tmp_path):
    write_run("a")
    (run,), problems = load_results([tmp_path])
    assert problems == []
    record = run.record
    assert (run.name, record.status, run.model, run.conv) == (
        *("a", "finished", "mobilenet_v1", "standard"),
    )
    assert (run.accuracy, record.params, record.time.train_s) == (0.98, 29_294_088, 100.0)
    (times,) = record.latency
    assert (times.p50_ms, times.p10_ms, times.p90_ms, times.stable) == (4.0, 3.9, 4.2, True)
    assert (record.match, run.predictions) == (None, None)
    assert run.searched == run.tags == run.epochs == ()
    assert str(times.conditions) == "cpu Test CPU, 2 threads, batch 1, fp32, channels_last, eager"
    assert dict(run.setting) == {
        "data.name": "digits",
        "data.fingerprint": "0123456789abcdef",
        "data.augment.flip": "false",
        "data.batch_size": "64",
        "input_size": "1x32x32",
        "recipe.lr": "0.2",
        "recipe.model_ema_warmup": "false",
        "recipe.norm_statistics": "running",
        "recipe.staircase": "true",
        "trainer.max_epochs": "20",
    }


def test_each_run_once_in_the_order_of_paths(write_run, tmp_path):
    for name in "cab":
        write_run(name)
    runs, _ = load_results([tmp_path / "runs" / "b", tmp_path, tmp_path / "runs/c/result.json"])
    assert [run.name for run in runs] == ["a", "b", "c"]


def test_a_run_that_failed_at_once_has_almost_nothing(tmp_path):
    record = {"status": "failed", "error": "no", "model": "m", "conv": "standard"}
    (tmp_path / "result.json").write_text(json.dumps(record))
    (run,), _ = load_results([tmp_path])
    assert (run.name, run.error, run.accuracy, run.setting) == (tmp_path.name, "no", None, ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"model": ', "Expecting value"),
        ("", "Expecting value"),
        ("[]", "object"),
        ('{"conv": "standard"}', "model"),
        ('{"model": "m", "conv": "c", "schema": 99}', "schema is 99"),
        ('{"model": "m", "conv": "c", "params": "many"}', "params must be a whole number"),
        (
            '{"model": "m", "conv": "c", "metrics": {"test/acc": true}}',
            "metrics.test/acc must be a finite number",
        ),
        ('{"model": "m", "conv": "c", "metrics": 3}', "metrics must be a group of keys"),
        ('{"model": "m", "conv": "c", "latency": [3]}', "latency must be a list, each a group"),
        ('{"model": "m", "conv": "c", "latency": 3}', "latency must be a list; got 3"),
        ('{"model": "m", "conv": "c", "input_size": "big"}', "input_size must be a list"),
        ('{"model": "m", "conv": "c", "conv_options": 3}', "conv_options must be a group"),
        ('{"model": "m", "conv": "c", "match": {"to": "standard"}}', "match.quantity is missing"),
        (
            '{"model": "m", "conv": "c", "latency": [{"p50_ms": 1, "device": []}]}',
            "latency.0.device must be text",
        ),
        ('{"model": "m", "conv": "c", "tags": "x"}', "tags must be a list"),
        ('{"model": "m", "conv": "c", "match": 3}', "match must be a group of keys"),
        (
            '{"model": "m", "conv": "c", "search": {"best": [1]}}',
            "search.best must be a group of keys",
        ),
        (
            '{"model": "m", "conv": "c", "search": {"best": {"lr": "x"}}}',
            "search.best.lr must be a finite number",
        ),
        (b"\xff\xfe", "utf-8"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_go_on(write_run, tmp_path, text, reason):
    write_run("good")
    bad = tmp_path / "runs" / "bad" / "result.json"
    bad.parent.mkdir()
    bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    runs, (problem,) = load_results([tmp_path])
    assert [run.name for run in runs] == ["good"]
    assert problem.path == bad
    assert reason in problem.reason
    assert "\n" not in problem.reason


def test_not_a_number_is_not_measured(write_run, tmp_path):
    write_run("a", metrics={"test/acc": float("nan")})
    (run,), _ = load_results([tmp_path])
    assert run.accuracy is None


@pytest.mark.parametrize(
    ("path", "message"),
    [(".", "no result.json below"), ("missing", "does not exist"), ("note.txt", "neither")],
)
def test_nothing_to_read_is_one_line(tmp_path, path, message):
    (tmp_path / "note.txt").touch()
    with pytest.raises(UserError, match=message) as error:
        load_results([tmp_path / path])
    assert "\n" not in str(error.value)


def test_epochs(write_run, tmp_path):
    folder = write_run("a")
    (folder / "metrics.csv").write_text("epoch,train/loss,val/acc\n1,2.5,\n2,nan,0.5\n")
    (run,), problems = load_results([tmp_path])
    assert problems == []
    assert run.epochs[0] == {"epoch": 1.0, "train/loss": 2.5}
    assert np.isnan(run.epochs[1]["train/loss"])


def test_predictions(write_run, tmp_path):
    write_run("a", right=range(40))
    (run,), problems = load_results([tmp_path])
    assert problems == []
    assert run.accuracy == run.predictions.accuracy == 0.8


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("epoch,val/acc\n1,high\n", "could not convert"),
        ("epoch,val/acc\n1,0.5,7\n", "more values"),
        ("0.5,0.7\n0.5,0.7\n", "names no epoch"),
        ('epoch,val/acc\n1,"0.5\n', "unexpected end of data"),
        (b"\xff\xfe", "utf-8"),
    ],
)
def test_damaged_epochs_are_named_and_the_run_goes_on(write_run, tmp_path, text, reason):
    file = write_run("a") / "metrics.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    (run,), (problem,) = load_results([tmp_path])
    assert (run.accuracy, run.epochs) == (0.98, ())
    assert problem.path == file
    assert reason in problem.reason


LABEL = np.arange(50) % 10


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"label": LABEL}, "predicted is not a file in the archive"),
        ({"label": LABEL, "predicted": LABEL[:9]}, "not (N,) both"),
        ({"label": LABEL[:0], "predicted": LABEL[:0]}, "not (N,) both"),
        ({"label": LABEL, "predicted": LABEL / 2}, "not integers"),
        (
            {"label": LABEL, "predicted": LABEL},
            "its accuracy is 1.0000, that of the record 0.9800",
        ),
        ({"label": LABEL, "predicted": np.array([{}] * 50)}, "allow_pickle"),
        (LABEL, "no .npz"),
        (b"", "No data left"),
        (b"PK\x03\x04 cut off", "not a zip file"),
        (b"some text", "pickle"),
    ],
)
def test_damaged_predictions_are_named_and_the_run_goes_on(write_run, tmp_path, arrays, reason):
    file = write_run("a") / "predictions.npz"
    if isinstance(arrays, bytes):
        file.write_bytes(arrays)
    elif isinstance(arrays, np.ndarray):
        with file.open("wb") as stream:
            np.save(stream, arrays)
    else:
        np.savez(file, **arrays)
    (run,), (problem,) = load_results([tmp_path])
    assert (run.accuracy, run.predictions) == (0.98, None)
    assert problem.path == file
    assert reason in problem.reason
    assert "\n" not in problem.reason


def test_a_file_cut_off_in_the_middle(write_run, tmp_path):
    file = write_run("a", right=range(40)) / "predictions.npz"
    file.write_bytes(file.read_bytes()[:-30])
    (run,), (problem,) = load_results([tmp_path])
    assert run.predictions is None
    assert problem.path == file


def test_a_changed_byte_is_named_or_changes_nothing(write_run, tmp_path):
    write_run("good")
    file = write_run("a", right=range(40)) / "predictions.npz"
    whole = file.read_bytes()
    expected = load_results([file.parent])[0][0].predictions.predicted.tolist()
    damaged = 0
    for place in range(0, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        runs, problems = load_results([tmp_path])
        assert [run.name for run in runs] == ["a", "good"]
        if found := runs[0].predictions:
            assert found.predicted.tolist() == expected
        else:
            assert [problem.path for problem in problems] == [file]
            damaged += 1
    assert damaged > 50
