"""Means, spreads, ratios, and what may not be compared."""

from __future__ import annotations

import numpy as np
import pytest

from dwsep_zoo.report.results import load_results
from dwsep_zoo.report.table import make_tables


def tables_of(path):
    runs, problems = load_results([path])
    assert problems == []
    return make_tables(runs)


def only_table(path):
    (table,), repeated = tables_of(path)
    assert repeated == []
    return table


def test_seeds_are_averaged_and_set_against_standard(pair):
    table = only_table(pair)
    standard, separable = table.rows
    assert (standard.first.conv, separable.first.conv) == ("standard", "depthwise_separable")
    assert standard.accuracy.values == (0.97, 0.98, 0.99)
    assert standard.accuracy.mean == pytest.approx(0.98)
    assert standard.accuracy.std == pytest.approx(np.std([0.97, 0.98, 0.99], ddof=1))
    assert separable.accuracy_difference == pytest.approx(0.97 - 0.98)
    assert separable.params_ratio == 4_231_976 / 29_294_088
    assert separable.macs_ratio == 1 / 8
    assert separable.train_ratio == 60 / 100
    assert separable.latency_ratio(table.conditions[0]) == 3 / 4
    assert standard.params_ratio == standard.macs_ratio == standard.train_ratio == 1
    assert standard.accuracy_difference == 0
    assert standard.is_reference
    assert not separable.is_reference


def test_one_seed_has_no_spread(write_run, tmp_path):
    write_run("a")
    (row,) = only_table(tmp_path).rows
    assert row.accuracy.std is None


@pytest.mark.parametrize(
    "change", [{"model": "xception"}, {"width_mult": 0.5}, {"output_stride": 8}]
)
def test_standard_of_another_network_is_no_reference(write_run, tmp_path, change, as_separable):
    write_run("standard")
    write_run("separable", **as_separable, **change)
    rows = only_table(tmp_path).rows
    (separable,) = (row for row in rows if row.first.conv != "standard")
    assert separable.reference is None
    assert separable.accuracy_difference is None
    assert separable.macs_ratio is None


def test_no_latency_ratio_across_conditions(write_run, tmp_path, latency, as_separable):
    write_run("standard")
    write_run("separable", latency=[latency | {"threads": 8}], **as_separable)
    table = only_table(tmp_path)
    assert len(table.conditions) == 2
    assert [table.rows[1].latency_ratio(c) for c in table.conditions] == [None, None]
    assert [table.rows[1].latency(c) for c in table.conditions] == [None, 4.0]


def test_no_time_ratio_across_machines(write_run, tmp_path, as_separable):
    write_run("standard")
    write_run("separable", machine={"cpu": "Other", "threads": 2}, **as_separable)
    row = only_table(tmp_path).rows[1]
    assert row.train_s.mean == 100
    assert row.train_ratio is None


def test_conv_options_make_rows_and_seeds_do_not(write_run, tmp_path):
    for number, size in enumerate((4, 8, 8)):
        options = {"group_size": size}
        write_run(f"g{number}", conv="grouped", conv_options=options, seed=number)
    assert [len(row.runs) for row in only_table(tmp_path).rows] == [1, 2]


def test_standard_stands_first_of_its_model(write_run, tmp_path):
    for conv in ("blueprint", "standard", "depthwise_separable"):
        for model in ("xception", "mobilenet_v2"):
            write_run(f"{model}-{conv}", model=model, conv=conv)
    convs = ["standard", "blueprint", "depthwise_separable"]
    assert [(row.first.model, row.first.conv) for row in only_table(tmp_path).rows] == [
        (model, conv) for model in ("mobilenet_v2", "xception") for conv in convs
    ]


@pytest.mark.parametrize(
    ("change", "distinction"),
    [
        ({"data__fingerprint": "f" * 64}, ("data.fingerprint", "f" * 64)),
        ({"data__augment": {"flip": True}}, ("data.augment.flip", "true")),
        ({"input_size": [1, 64, 64]}, ("input_size", "1x64x64")),
        ({"config__data__batch_size": 32}, ("data.batch_size", "32")),
        ({"config__recipe__lr": 0.1}, ("recipe.lr", "0.1")),
        ({"config__trainer__max_epochs": 5}, ("trainer.max_epochs", "5")),
        ({"config__trainer__limit_train_batches": 2}, ("trainer.limit_train_batches", "2")),
        ({"config__model__drop_rate": 0.5}, ("model.drop_rate", "0.5")),
        ({"config__ckpt_path": "a.ckpt"}, ("ckpt_path", "a.ckpt")),
        ({"precision": "bf16-mixed"}, ("trainer.precision", "bf16-mixed")),
    ],
)
def test_what_is_not_comparable_is_split_and_says_why(
    write_run, tmp_path, change, distinction, as_separable
):
    write_run("a")
    write_run("b", **as_separable, **change)
    (first, second), _ = tables_of(tmp_path)
    assert second.distinction == (distinction,)
    assert [key for key, _ in first.distinction] == [distinction[0]]
    assert second.rows[0].reference is None


@pytest.mark.parametrize(
    "change",
    [
        {"config__data__root": "elsewhere"},
        {"config__trainer__accelerator": "cpu"},
        {"config__recipe__epochs": 7},  # trainer.max_epochs is what counts
        {"config__trainer__gradient_clip_val": None},
    ],
)
def test_what_changes_no_result_splits_nothing(write_run, tmp_path, change, as_separable):
    write_run("a")
    write_run("b", **as_separable, **change)
    assert only_table(tmp_path).distinction == ()


def test_a_repetition_is_not_a_second_sample(write_run, tmp_path):
    write_run("a", metrics={"test/acc": 0.5}, finished="2026-01-02T00:00:00+00:00")
    write_run("b", metrics={"test/acc": 0.9}, finished="2026-01-01T00:00:00+00:00")
    (table,), (repeated,) = tables_of(tmp_path)
    assert table.rows[0].accuracy.values == (0.5,)
    assert repeated.name == "b"
