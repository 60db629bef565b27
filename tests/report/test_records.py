"""CSV and JSON hold the raw numbers."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from dwsep_zoo.report import Options, compare
from dwsep_zoo.report.records import csv_text
from dwsep_zoo.report.results import load_results
from dwsep_zoo.report.table import make_tables


def csv_of(path):
    tables, _ = make_tables(load_results([path])[0])
    return tables, list(csv.DictReader(io.StringIO(csv_text(tables))))


def test_csv_parses_back_to_the_raw_numbers(pair):
    (table,), (standard, separable) = csv_of(pair)
    row = table.rows[1]
    assert standard["conv"] == "standard"
    assert float(separable["test_acc_mean"]) == row.accuracy.mean
    assert float(separable["test_acc_std"]) == row.accuracy.std
    assert float(separable["test_acc_low"]) == row.accuracy.interval.low
    assert float(separable["test_acc_difference"]) == pytest.approx(-0.005)
    assert float(separable["difference_high"]) == row.paired.t.high
    assert float(separable["difference_bootstrap_low"]) == row.paired.bootstrap.low
    assert separable["verdict"] == "not distinguishable"
    assert separable["reference"] == "standard"
    assert int(separable["params"]) == 4_231_976
    assert float(separable["params_ratio"]) == 4_231_976 / 29_294_088
    assert float(separable["macs_ratio"]) == 0.125
    assert float(separable["latency_p50_ms"]) == 3.0
    assert (separable["latency_threads"], separable["latency_runtime"]) == ("2", "eager")
    assert (separable["latency_stable"], separable["latency_ratio"]) == ("True", "0.75")
    assert json.loads(separable["conv_options"]) == {"mid": None}
    assert (separable["n"], separable["seeds"], separable["lr"]) == ("2", "0 1", "0.2")
    assert separable["runs"] == "separable-s0 separable-s1"
    assert separable["data_fingerprint"] == "0123456789abcdef"


def test_csv_has_columns_for_every_condition(write_run, tmp_path, latency):
    write_run("a", latency=[latency, latency | {"runtime": "compiled", "p50_ms": 1.5}])
    _, (row,) = csv_of(tmp_path)
    assert (row["latency_runtime"], row["latency_p50_ms"]) == ("eager", "4.0")
    assert (row["latency2_runtime"], row["latency2_p50_ms"]) == ("compiled", "1.5")


def test_what_was_not_measured_is_empty(write_run, tmp_path):
    write_run("a", metrics={}, latency=[], time={}, macs=None, config={})
    _, (row,) = csv_of(tmp_path)
    names = ("test_acc_mean", "test_acc_low", "macs", "train_s", "lr", "verdict")
    assert [row[name] for name in names] == [""] * 6
    assert row["n"] == "0"


def test_json_has_everything(write_run, tmp_path, latency, as_separable, as_matched):
    write_run("a0", right=range(40), latency=[latency, latency | {"batch_size": 8}])
    write_run("a1", right=range(41), seed=1)
    write_run("b0", right=range(4, 45), best_epoch=2, **as_separable)
    write_run("b1", right=range(4, 42), seed=1, tags=["x"], best_epoch=3, **as_separable)
    write_run("c", **as_matched)
    write_run("bad", status="failed", error="no memory")
    (write_run("damaged") / "result.json").write_text("{")
    options = Options(by=("model", "conv"), where={"model": ("mobilenet_v1",)})
    compare([tmp_path / "runs"], tmp_path / "out", Console(file=io.StringIO()), options=options)
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["options"] == {
        "by": ["model", "conv"],
        "reference": "standard",
        "where": {"model": ["mobilenet_v1"]},
    }
    (table,) = content["tables"]
    assert table["setting"]["data.fingerprint"] == "0123456789abcdef"
    standard, separable, matched = table["rows"]
    assert [row["reference"] for row in table["rows"]] == [0, 0, 0]
    assert standard["paired"] is None
    assert separable["paired"]["seeds"] == [0, 1]
    assert separable["paired"]["differences"] == pytest.approx([0.02, -0.06])
    low, high = separable["paired"]["t_interval"]
    assert (low + high) / 2 == pytest.approx(separable["test_acc_difference"]) == -0.02
    assert [test["only_other"] for test in separable["paired"]["mcnemar"]] == [5, 1]
    assert separable["test_acc"]["values"] == [0.82, 0.76]
    assert [run["seed"] for run in separable["runs"]] == [0, 1]
    assert [run["best_epoch"] for run in separable["runs"]] == [2, 3]
    assert separable["runs"][1]["tags"] == ["x"]
    assert matched["match"]["quantity"] == "macs"
    assert [entry["batch_size"] for entry in standard["latency"]] == [1, 8]
    assert standard["latency"][0]["p90_ms"] == 4.2
    assert content["unfinished"][0] | {"folder": ""} == {
        "run": "bad",
        "folder": "",
        "status": "failed",
        "error": "no memory",
    }
    assert content["problems"][0]["file"].endswith("damaged/result.json")
    assert table["verdicts"]
    assert table["legend"]
