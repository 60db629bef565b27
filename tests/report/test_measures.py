"""Every measure appears where it says, with the value of the record."""

from __future__ import annotations

import csv
import io
import json

import pytest

from dwsep_zoo.report.columns import columns, size_columns
from dwsep_zoo.report.comparison import collect
from dwsep_zoo.report.records import csv_text, json_text
from dwsep_zoo.schema import measures as module
from dwsep_zoo.schema.measures import (
    BALANCED_ACC,
    LATENCY,
    MEASURES,
    TEST_ACC,
    Measure,
    hparams_metrics,
)
from dwsep_zoo.schema.record import Conditions, read_record

MEMORY = {"inference_mb": 120.5, "training_mb": 400.25, "peak_mb": 1000.0, "batch_size": 64}
VALUES = {
    **{"test_acc": 0.98, "balanced_acc": 0.9, "val_acc": 0.99, "params": 29_294_088},
    "macs": 400_000_000,
    **{"latency": 4.0, "size_bytes": 117_000_000, "size_mb": 117.0, "inference_mb": 120.5},
    **{"activations_mb": 3.5, "training_mb": 400.25, "peak_mb": 1000.0, "train_s": 100.0},
    "images_per_second": 500.0,
}


@pytest.fixture
def folder(write_run):
    per_class = {"images": [50, 50], "accuracy": [0.8, 1.0], "balanced_acc": 0.9}
    return write_run("a", memory=MEMORY, size_bytes=117_000_000, per_class=per_class)


def shown_in(comparison):
    """By place, headings or names with the value of the first row."""
    (table,) = comparison.tables
    (row,) = json.loads(json_text(comparison))["tables"][0]["rows"]
    (line,) = csv.DictReader(io.StringIO(csv_text(comparison.tables)))
    return {
        "table": {column.heading: column.cells[0] for column in columns(table)},
        "csv": line,
        "json": {
            k: v["mean"] if isinstance(v, dict) and "mean" in v else v for k, v in row.items()
        },
        "page": {column.heading: column.cells[0] for column in size_columns(table)},
    }


def test_names_are_unique():
    assert [measure.name for measure in MEASURES] == list(VALUES)
    for attribute in ("name", "tag", "ratio"):
        values = [value for measure in MEASURES if (value := getattr(measure, attribute))]
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_measure_is_where_it_says(measure, folder):
    expected = VALUES[measure.name]
    assert measure.value(read_record(folder / "result.json")) == expected
    places = shown_in(collect([folder], folder))
    for place in ("csv", "json"):
        if place in measure.places:
            assert float(places[place][measure.name]) == expected
            assert not measure.ratio or float(places[place][measure.ratio]) == 1
        elif measure not in (LATENCY, TEST_ACC, BALANCED_ACC):  # which JSON has in more detail
            assert measure.name not in places[place]
    for place in ("table", "page"):
        if place in measure.places:
            shown = float(places[place][measure.heading].replace(",", ""))
            assert shown == pytest.approx(expected / measure.scale, rel=0.01)
        elif measure is not TEST_ACC:
            assert measure.heading not in places[place]


def test_a_new_entry_of_the_list_is_all_that_a_new_measure_needs(folder, monkeypatch):
    new = Measure(
        "per_param",
        "MACs per param",
        "x",
        lambda r: r.macs / r.params if r.macs and r.params else None,
        places=("table", "csv", "json", "page"),
        ratio="per_param_ratio",
        tag="perf/per_param",
    )
    monkeypatch.setattr(module, "MEASURES", (*MEASURES, new))
    places = shown_in(collect([folder], folder))
    expected = 400_000_000 / 29_294_088
    assert float(places["csv"]["per_param"]) == places["json"]["per_param"] == expected
    assert places["csv"]["per_param_ratio"] == "1.0"
    for place in ("table", "page"):
        assert float(places[place][new.heading]) == pytest.approx(expected, rel=0.01)
    assert hparams_metrics(read_record(folder / "result.json"))["perf/per_param"] == expected


def test_a_latency_is_measured_under_its_conditions_only(folder):
    record = read_record(folder / "result.json")
    conditions = record.latency[0].conditions
    assert LATENCY.under(conditions).value(record) == LATENCY.value(record) == 4.0
    assert LATENCY.under(Conditions()).value(record) is None


def test_the_tags_of_hparams(folder):
    found = hparams_metrics(read_record(folder / "result.json"))
    assert list(found) == [
        *("test/acc", "perf/latency_ms_p50", "test/balanced_acc", "best/val_acc", "perf/params_m"),
        *("perf/macs_m", "perf/size_mb", "perf/train_s"),
    ]
    assert found["perf/size_mb"] == 117
