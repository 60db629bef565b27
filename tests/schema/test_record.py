"""The record of a run: kept as written, upgraded, and refused in one line."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.record import (
    SCHEMA,
    Conditions,
    LatencyRecord,
    Match,
    RecordFile,
    RunRecord,
    parse_record,
    read_record,
    write_record,
)

LATENCY = {
    **{"device": "cpu", "device_name": "X", "threads": 2, "batch_size": 1, "precision": "fp32"},
    **{"memory_format": "channels_last", "runtime": "eager"},
    **{"p50_ms": 4.0, "p10_ms": 3, "p90_ms": 5.5, "runs": 100, "stable": True},
}
VALUES = {
    **{"schema": SCHEMA, "status": "finished", "error": None, "model": "m", "conv": "standard"},
    **{"width_mult": 1, "tags": ["a", 1], "match": None, "latency": [LATENCY]},
    "data": {"name": "digits", "mean": [0.5], "splits": {"train": 9}, "subset": None},
    "metrics": {"test/acc": 0.5, "val/acc": 1},
    "config": {"recipe": {"betas": [0.9, 0.99], "lr": None}, "train": True},
}


def test_a_record_is_written_as_it_was_read(tmp_path):
    write_record(tmp_path / "a.json", parse_record(VALUES))
    written = json.loads((tmp_path / "a.json").read_text())
    assert written == VALUES
    assert read_record(tmp_path / "a.json") == parse_record(VALUES)
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_keys_of_a_newer_run_are_kept():
    newer = VALUES | {"energy": 3, "latency": [LATENCY | {"power": "eco"}]}
    assert parse_record(newer).plain() == newer


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_value_that_is_not_finite_was_not_measured(value):
    record = parse_record(VALUES | {"metrics": {"test/acc": value}, "images_per_second": value})
    assert record.metrics["test/acc"] is record.images_per_second is None


def test_an_infinite_value_elsewhere_is_no_damage():
    record = parse_record(VALUES | {"roofline": {"a": [float("inf")]}, "config": {"x": -math.inf}})
    assert (record.roofline, record.configured("x")) == ({"a": [math.inf]}, -math.inf)


def test_conditions_tell_latencies_apart():
    one = LatencyRecord(**LATENCY)
    other = LatencyRecord(**LATENCY | {"p50_ms": 9.0})
    third = LatencyRecord(**LATENCY | {"threads": 1})
    assert one.conditions == other.conditions
    assert len({one.conditions, other.conditions, third.conditions}) == 2
    assert str(third.conditions) == "cpu X, 1 thread, batch 1, fp32, channels_last, eager"
    assert str(Conditions()) == "conditions not recorded"
    record = parse_record(VALUES | {"latency": [one, third]})
    assert record.latency_under(third.conditions) == third


@pytest.mark.parametrize(
    ("key", "value"), [("recipe.betas", [0.9, 0.99]), ("recipe.lr", None), ("train.x", None)]
)
def test_a_setting_is_found_by_its_dotted_name(key, value):
    assert parse_record(VALUES).configured(key) == value


def test_version_1_is_upgraded():
    match = Match.of("macs", "standard", target=4.0, achieved=3.0, width_mult=2.0)
    assert match.residual == -0.25
    old = VALUES | {"schema": 1, "match": match.plain()}
    assert parse_record(old).match is None  # with its own conv type
    assert parse_record(old | {"conv": "mixed"}).match == match
    assert parse_record({k: v for k, v in old.items() if k != "schema"}).version == SCHEMA


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": SCHEMA + 1}, f"schema is {SCHEMA + 1}"),
        ({"schema": "2"}, "schema is '2'"),
        ({"schema": []}, r"schema is \[\]"),
        ({"params": 1.5}, "params must be a whole number"),
        ({"params": True}, "params must be a whole number"),
        ({"metrics": {"test/acc": "0.9"}}, "metrics.test/acc must be a finite number; got '0.9'"),
        ({"match": {"quantity": "macs"}}, "match.to is missing"),
        ({"latency": [LATENCY | {"threads": "2"}]}, "latency.0.threads must be a whole number"),
        ({"conv_options": [1]}, "conv_options must be a group of keys"),
        ({"data": {"mean": [float("nan")]}}, "data.mean must be a list, each a finite number"),
        ({"error": "x" * 1000, "seed": "y" * 1000}, "seed must be a whole number"),
    ],
)
def test_a_damaged_record_is_one_line_that_names_the_key(change, message):
    with pytest.raises(UserError, match=message) as error:
        parse_record(VALUES | change)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_run_in_progress_is_on_disk_and_checked_at_every_change(tmp_path):
    file = RecordFile(tmp_path, model="m", conv="standard", config={"a": [1]})
    assert read_record(file.path) == file.record
    assert (file.record.status, file.record.error) == ("running", None)
    file.update(latency=[LatencyRecord(**LATENCY)], status="finished")
    assert read_record(file.path).latency[0].p50_ms == 4.0
    with pytest.raises(UserError, match="seed"):
        file.update(seed="0")
    assert read_record(file.path) == file.record
    silent = RecordFile(tmp_path / "other", enabled=False, model="m", conv="c")
    assert isinstance(silent.record, RunRecord)
    assert not silent.path.exists()


def test_a_record_is_final():
    record = parse_record(VALUES)
    with pytest.raises(ValueError, match="frozen"):
        record.seed = 3


def test_records_and_measures_need_no_torch():
    code = (
        "import sys, dwsep_zoo.schema.measures; "
        "print({'torch', 'lightning', 'hydra', 'numpy'} & {m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
