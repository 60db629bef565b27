"""Means, spreads, ratios, and what may not be compared."""

from __future__ import annotations

import numpy as np
import pytest

from dwsep_zoo.errors import UserError
from dwsep_zoo.report import words
from dwsep_zoo.report.results import load_results
from dwsep_zoo.report.table import Options, make_tables, select


def tables_of(path, **options):
    runs, problems = load_results([path])
    assert problems == []
    return make_tables(runs, Options(**options))


def only_table(path, **options):
    (table,), repeated = tables_of(path, **options)
    assert repeated == []
    return table


def test_seeds_are_averaged_and_set_against_standard(pair, measure):
    table = only_table(pair)
    standard, separable = table.rows
    assert (standard.first.conv, separable.first.conv) == ("standard", "depthwise_separable")
    assert standard.accuracy.values == (0.97, 0.98, 0.99)
    assert standard.accuracy.mean == pytest.approx(0.98)
    assert standard.accuracy.std == pytest.approx(np.std([0.97, 0.98, 0.99], ddof=1))
    # Over the common seeds 0 and 1 only
    assert separable.accuracy_difference == pytest.approx((0.96 - 0.97 + 0.98 - 0.98) / 2)
    assert separable.paired.seeds == (0, 1)
    assert standard.paired is None
    ratios = {"params": 4_231_976 / 29_294_088, "macs": 1 / 8, "train_s": 60 / 100}
    assert {name: separable.ratio(measure[name]) for name in ratios} == ratios
    assert {standard.ratio(measure[name]) for name in ratios} == {1}
    assert separable.latency_ratio(table.conditions[0]) == 3 / 4
    assert standard.accuracy_difference == 0
    assert standard.is_reference
    assert not separable.is_reference


def test_one_seed_has_no_spread(write_run, tmp_path):
    write_run("a")
    (row,) = only_table(tmp_path).rows
    assert row.accuracy.std is row.accuracy.interval is None


@pytest.mark.parametrize(
    "change", [{"model": "xception"}, {"width_mult": 0.5}, {"output_stride": 8}]
)
def test_standard_of_another_network_is_no_reference(
    write_run, tmp_path, change, as_separable, measure
):
    write_run("standard")
    write_run("separable", **as_separable, **change)
    rows = only_table(tmp_path).rows
    (separable,) = (row for row in rows if row.first.conv != "standard")
    assert separable.reference is None
    assert separable.accuracy_difference is None
    assert separable.ratio(measure["macs"]) is None


def test_no_latency_ratio_across_conditions(write_run, tmp_path, latency, as_separable):
    write_run("standard")
    write_run("separable", latency=[latency | {"threads": 8}], **as_separable)
    table = only_table(tmp_path)
    assert len(table.conditions) == 2
    assert [table.rows[1].latency_ratio(c) for c in table.conditions] == [None, None]
    assert [table.rows[1].latency(c) for c in table.conditions] == [None, 4.0]


def test_latencies_that_were_not_measured_in_turns_say_so(write_run, tmp_path, as_separable):
    write_run("a0")
    write_run("a1", seed=1)
    write_run("b0", **as_separable)
    assert not any("in turns" in line for line in words.warnings(only_table(tmp_path)))
    write_run("b1", seed=1, in_turns="2026-01-02T01:00:00+00:00", **as_separable)
    (line,) = (line for line in words.warnings(only_table(tmp_path)) if "in turns" in line)
    assert line.endswith(": depthwise_separable")
    for alone in ("c0", "c1"):
        write_run(alone, model="xception", seed=int(alone[1]), in_turns=None)
    assert [line for line in words.warnings(only_table(tmp_path)) if "xception" in line] == []
    write_run("d0", model="xception", in_turns=None, **as_separable)
    (line,) = (line for line in words.warnings(only_table(tmp_path)) if "in turns" in line)
    assert line.endswith(": mobilenet_v1 depthwise_separable, xception depthwise_separable")


def test_training_time_is_of_the_device_that_was_used(write_run, tmp_path, as_separable, measure):
    machine = {"cpu": "Test CPU", "threads": 2, "gpu": "Test GPU"}
    write_run("a", machine=machine, device="cuda")
    write_run("b", machine=machine, device="cuda", **as_separable)
    write_run("c", machine=machine, device="cpu", conv="mixed")
    write_run("d", device="cpu", conv="grouped")
    table = only_table(tmp_path)
    rows = {row.first.name: row for row in table.rows}
    ratios = {name: row.ratio(measure["train_s"]) for name, row in rows.items()}
    assert ratios == {"a": 1, "b": 1, "c": None, "d": None}
    assert rows["c"].machine == rows["d"].machine  # a GPU that lies idle is no part of it
    (line,) = (line for line in words.legend(table) if "train s" in line)
    assert "Test GPU, Test CPU, 2 threads" in line


@pytest.mark.parametrize(
    ("key", "said"), [("compiled", "compiled steps"), ("own_kernels", "this project's kernels")]
)
def test_no_time_ratio_of_other_steps(key, said, write_run, tmp_path, as_separable, measure):
    write_run("a", **{key: False})
    write_run("b", **{key: True}, **as_separable)
    write_run("c", **{key: None}, conv="mixed")
    table = only_table(tmp_path)
    ratios = {row.first.name: row.ratio(measure["train_s"]) for row in table.rows}
    assert ratios == {"a": 1, "b": None, "c": 1}
    assert any(said in line for line in words.legend(table))


def test_no_time_ratio_across_machines(write_run, tmp_path, as_separable, measure):
    write_run("standard")
    write_run("separable", machine={"cpu": "Other", "threads": 2}, **as_separable)
    row = only_table(tmp_path).rows[1]
    assert row.value(measure["train_s"]) == 100
    assert row.ratio(measure["train_s"]) is None


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
        ({"config__train": False}, ("train", "false")),
        ({"config__test": False}, ("test", "false")),
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


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_run_without_training_or_test_is_no_repetition(write_run, tmp_path, part):
    write_run("whole", config__train=True, config__test=True)
    last = "2026-01-02T00:00:00+00:00"
    others = {"config__train": True, "config__test": True, f"config__{part}": False}
    write_run("without", finished=last, metrics={}, **others)
    tables, repeated = tables_of(tmp_path)
    assert repeated == []
    assert {table.rows[0].first.name: table.rows[0].accuracy is None for table in tables} == {
        "whole": False,
        "without": True,
    }


def test_a_matched_row_stands_against_the_network_whose_budget_it_has(
    write_run, tmp_path, as_separable, as_matched, measure
):
    write_run("standard")
    write_run("separable", **as_separable)
    write_run("matched", **as_matched)
    write_run("wide standard", width_mult=2.8)
    write_run("wide separable", width_mult=2.8, **as_separable)
    rows = {row.first.name: row for row in only_table(tmp_path).rows}
    assert rows["separable"].reference.first.name == "standard"
    assert rows["matched"].reference.first.name == "standard"
    assert rows["wide separable"].reference.first.name == "wide standard"
    assert rows["matched"].match.residual == -0.01
    assert rows["matched"].ratio(measure["macs"]) == 0.99
    assert list(rows) == ["standard", "separable", "matched", "wide standard", "wide separable"]


@pytest.mark.parametrize("reference", ["depthwise_separable", "mobilenet_v1/depthwise_separable"])
def test_a_matched_row_keeps_its_reference(
    write_run, tmp_path, as_separable, as_matched, reference
):
    write_run("standard")
    write_run("separable", **as_separable)
    write_run("matched", **as_matched)
    rows = {row.first.name: row for row in only_table(tmp_path, reference=reference).rows}
    assert rows["separable"].is_reference
    assert rows["standard"].reference.first.name == "separable"
    assert rows["matched"].reference.first.name == "standard"


def test_a_network_matched_to_itself_is_not_matched(write_run, tmp_path, as_matched):
    write_run("a")
    write_run("b", seed=1, match=as_matched["match"])
    assert [len(row.runs) for row in only_table(tmp_path).rows] == [2]


def test_widths_that_were_solved_differently_are_not_averaged(write_run, tmp_path, as_matched):
    write_run("a", **as_matched)
    write_run("b", seed=1, **as_matched | {"width_mult": 2.6})
    write_run("c", seed=2, **as_matched | {"match": None})
    assert [len(row.runs) for row in only_table(tmp_path).rows] == [1, 1, 1]


def test_one_reference_for_all_models(write_run, tmp_path, as_separable):
    write_run("a")
    write_run("b", model="xception", width_mult=0.5, **as_separable)
    rows = only_table(tmp_path, reference="mobilenet_v1/standard").rows
    assert [row.reference.first.name for row in rows] == ["a", "a"]
    assert [row.is_reference for row in rows] == [True, False]


def test_the_reference_of_the_same_width_is_preferred(write_run, tmp_path, as_separable):
    for width in (0.5, 1.0):
        write_run(f"a{width}", width_mult=width)
        write_run(f"b{width}", width_mult=width, model="xception", **as_separable)
    rows = only_table(tmp_path, reference="mobilenet_v1/standard").rows
    assert {row.first.name: row.reference.first.name for row in rows if "b" in row.first.name} == {
        "b0.5": "a0.5",
        "b1.0": "a1.0",
    }


def test_of_several_references_none_is_taken(write_run, tmp_path):
    write_run("standard")
    for size in (4, 8):
        write_run(f"g{size}", conv="grouped", conv_options={"group_size": size})
    table = only_table(tmp_path, reference="grouped")
    rows = {row.first.name: row for row in table.rows}
    assert rows["g4"].is_reference
    assert rows["g8"].is_reference
    assert rows["standard"].reference is None
    assert {row.first.name for row in rows["standard"].ambiguous} == {"g4", "g8"}
    (line,) = words.warnings(table)
    assert line.startswith("standard: ")
    assert line.endswith(": grouped group_size=4; grouped group_size=8")


def test_a_reference_has_the_same_tags_where_tags_part_rows(write_run, tmp_path, as_separable):
    for tag in ("old", "new"):
        write_run(f"standard-{tag}", tags=[tag])
        write_run(f"separable-{tag}", tags=[tag], **as_separable)
    rows = only_table(tmp_path, by=("tags", "conv")).rows
    assert [(row.first.name, row.reference.first.name) for row in rows] == [
        (f"{conv}-{tag}", f"standard-{tag}")
        for tag in ("new", "old")
        for conv in ("standard", "separable")
    ]


def test_a_reference_that_is_not_there_is_one_line(write_run, tmp_path):
    write_run("standard")
    with pytest.raises(UserError, match=r"reference 'blueprint'.*mobilenet_v1/standard, standard"):
        tables_of(tmp_path, reference="blueprint")


def test_a_searched_recipe_does_not_split(write_run, tmp_path, search, as_separable):
    write_run("a", search=search, config__recipe__lr=0.3)
    best = {"lr": 0.1, "weight_decay": 1e-3}
    write_run("b", search=search | {"best": best}, config__recipe__lr=0.1, **as_separable)
    table = only_table(tmp_path)
    assert [dict(row.first.searched)["lr"] for row in table.rows] == [0.3, 0.1]
    assert table.rows[1].reference is table.rows[0].reference


@pytest.mark.parametrize(
    "change", [None, {"trials": 2}, {"epochs": 3}, {"space": {"lr": [0.1, 1]}}]
)
def test_recipes_searched_with_another_effort_are_split(write_run, tmp_path, search, change):
    write_run("a", search=search)
    write_run("b", search=change and search | change, conv="x")
    tables, _ = tables_of(tmp_path)
    assert len(tables) == 2


def test_seeds_with_different_searched_recipes_are_not_averaged(write_run, tmp_path, search):
    write_run("a", search=search)
    write_run("b", seed=1, search=search | {"best": {"lr": 0.1, "weight_decay": 1e-3}})
    assert [len(row.runs) for row in only_table(tmp_path).rows] == [1, 1]


def test_by_orders_the_rows_and_averages_nothing_else(write_run, tmp_path):
    for model in ("a", "b"):
        for conv in ("standard", "grouped"):
            for width in (0.5, 1.0):
                write_run(f"{model}{conv}{width}", model=model, conv=conv, width_mult=width)
    rows = only_table(tmp_path, by=("conv", "width_mult")).rows
    assert [(row.first.conv, row.record.width_mult, row.first.model) for row in rows] == [
        (conv, width, model)
        for conv in ("standard", "grouped")
        for width in (0.5, 1.0)
        for model in ("a", "b")
    ]


def test_tags_part_rows_only_where_they_are_asked_for(write_run, tmp_path):
    for seed, tags in enumerate((["old"], ["old"], ["new"])):
        write_run(f"r{seed}", seed=seed, tags=tags)
    assert [len(row.runs) for row in only_table(tmp_path).rows] == [3]
    rows = only_table(tmp_path, by=("tags",)).rows
    assert [(row.first.tags, len(row.runs)) for row in rows] == [(("new",), 1), (("old",), 2)]


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ({"model": ("xception",)}, "x"),
        ({"conv": ("standard", "grouped")}, "sgx"),
        ({"width_mult": ("1.00",)}, "sgx"),
        ({"tags": ("a",), "conv": ("standard",)}, "s"),
        ({"match": ("macs",)}, "m"),
        ({"match": ("null",)}, "sgx"),
        ({"match": ("null", "macs")}, "sgxm"),
        (
            {"match": ("none",), "output_stride": ("16",), "seed": ("0",), "data": ("digits",)},
            "sgx",
        ),
    ],
)
def test_filters(write_run, tmp_path, as_matched, where, names):
    write_run("s", tags=["a", "b"])
    write_run("g", conv="grouped", tags=["a"])
    write_run("x", model="xception")
    write_run("m", **as_matched)
    runs, _ = load_results([tmp_path])
    assert sorted(run.name for run in select(runs, where)) == sorted(names)


def test_a_filter_drops_no_run_that_failed_too_early(write_run, tmp_path):
    write_run("a")
    write_run("early", status="failed", data={}, output_stride=None)
    write_run("other", status="failed", data__name="cifar10")
    runs, _ = load_results([tmp_path])
    assert [run.name for run in select(runs, {"data": ("digits",)})] == ["a", "early"]


def test_a_filter_that_lets_nothing_through_is_one_line(write_run, tmp_path):
    write_run("a")
    runs, _ = load_results([tmp_path])
    with pytest.raises(UserError, match="unknown conv 'standart'; did you mean 'standard'"):
        select(runs, {"conv": ("standart",)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ("modle",)}, "field of by 'modle'; did you mean 'model'"),
        ({"by": ("seed",)}, "field of by 'seed'"),
        ({"by": ()}, "names no field"),
        ({"where": {"modle": ("a",)}}, "field to filter by 'modle'"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        Options(**options)


def test_percentiles_and_steadiness_are_those_of_all_runs(write_run, tmp_path, latency):
    for seed, (p10, stable) in enumerate(((1.0, True), (2.0, False), (9.0, True))):
        write_run(f"r{seed}", seed=seed, latency=[latency | {"p10_ms": p10, "stable": stable}])
    table = only_table(tmp_path)
    (row,), (conditions,) = table.rows, table.conditions
    assert row.latency(conditions, "p10") == 2.0
    assert row.stable(conditions) is False


def test_mcnemar_of_each_common_seed(write_run, tmp_path, as_separable):
    write_run("s0", right=range(40))
    write_run("s1", right=range(45), seed=1)
    write_run("d0", right=range(5, 42), **as_separable)
    write_run("d1", seed=1, metrics={"test/acc": 0.9}, **as_separable)
    found = only_table(tmp_path).rows[1].paired
    (test,) = found.mcnemar
    assert (test.seed, test.both, test.only_reference, test.only_other) == (0, 35, 5, 2)
    assert found.no_mcnemar == ((1, "no predictions.npz of the network"),)
