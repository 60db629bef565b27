"""The table as text."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dwsep_zoo.report import render, words
from dwsep_zoo.report.columns import (
    columns,
    conditions_name,
    group_ends,
    latency_columns,
    ratio_text,
    row_label,
    statistics_columns,
)
from dwsep_zoo.report.comparison import collect
from dwsep_zoo.report.results import load_results
from dwsep_zoo.report.table import Options, make_tables


def tables_of(path, **options):
    return make_tables(load_results([path])[0], Options(**options))[0]


def cells_of(parts):
    return {column.heading: column.cells for column in parts if column.heading != "ratio"}


# Intervals by hand: 98 +- 4.303 * 1 / sqrt 3, 97 +- 12.71 * 1.414 / sqrt 2, within 0 and 100, and
# -0.5 +- 12.71 * 0.707 / sqrt 2
GOLDEN = """\
| model        | conv                |            test acc % |   n |                 diff | params M | ratio | MACs M | ratio | p50 ms | ratio | train s | ratio |
| ------------ | ------------------- | --------------------: | --: | -------------------: | -------: | ----: | -----: | ----: | -----: | ----: | ------: | ----: |
| mobilenet_v1 | standard            | 98.00 [95.52, 100.00] |   3 |                    0 |    29.29 |    1x |  400.0 |    1x |   4.00 |    1x |   100.0 |    1x |
| mobilenet_v1 | depthwise_separable | 97.00 [84.29, 100.00] |   2 | -0.50 [-6.85, +5.85] |     4.23 | 0.14x |   50.0 | 0.12x |   3.00 | 0.75x |    60.0 | 0.60x |
| network             | p50 ms |  p10 |  p90 | ratio | steady |
| ------------------- | -----: | ---: | ---: | ----: | ------ |
| standard            |   4.00 | 3.90 | 4.20 |    1x | yes    |
| depthwise_separable |   3.00 | 3.90 | 4.20 | 0.75x | yes    |
| network             | against  | seeds | diff by seed |  mean |         95 % t | 95 % bootstrap | only ref : only this | McNemar p |
| ------------------- | -------- | ----: | -----------: | ----: | -------------: | -------------: | -------------------: | --------: |
| depthwise_separable | standard |   0 1 |  -1.00 +0.00 | -0.50 | [-6.85, +5.85] | [-1.00, +0.00] |                    - |         - |
"""  # noqa: E501


def text_of(path, **options):
    """The markdown of all runs below ``path``."""
    return render.markdown(collect([path], path, Options(**options)))


def test_markdown(pair):
    text = text_of(pair)
    assert [line for line in text.splitlines() if line.startswith("|")] == GOLDEN.splitlines()
    (table,) = tables_of(pair)
    assert f"\n## {words.heading(table)}\n" in text
    sentences = [*words.verdicts(table), *words.warnings(table), *words.statistics_legend(table)]
    for sentence in (*sentences, *words.legend(table)):
        assert f"\n- {sentence}\n" in text


def test_markdown_names_everything_that_is_in_no_table(write_run, tmp_path):
    write_run("a")
    write_run("again", finished="2026-01-02T00:00:00+00:00")
    write_run("broken", status="failed", error="out of memory")
    write_run("killed", status="running")
    (tmp_path / "runs/a/x").mkdir()
    (tmp_path / "runs/a/x/result.json").write_text("{")
    text = text_of(tmp_path)
    assert "- broken: failed: out of memory\n- killed: running\n" in text
    assert f"- {tmp_path / 'runs/a'}\n" in text
    assert f"- {tmp_path / 'runs/a/x/result.json'}: " in text


def test_missing_values_are_dashes_and_empty_fields(write_run, tmp_path):
    write_run("a", metrics={}, latency=[], time={}, images_per_second=None, macs=None)
    (table,) = tables_of(tmp_path)
    cells = cells_of(columns(table))
    for heading in ("test acc %", "diff", "MACs M", "train s"):
        assert cells[heading] == ("-",)


def test_terminal_table_of_six_rows_fits(write_run, tmp_path, as_separable):
    for model in ("mobilenet_v1", "mobilenet_v2", "xception"):
        for seed in (0, 1):
            write_run(f"{model}-a{seed}", model=model, seed=seed)
            write_run(f"{model}-b{seed}", model=model, seed=seed, **as_separable)
    (table,) = tables_of(tmp_path)
    file = io.StringIO()
    console = Console(file=file, width=200)
    assert console.measure(render.rich_table(table)).maximum <= 130
    assert console.measure(render.rich_table(table, dense=True)).maximum <= 103
    console.print(render.rich_table(table))
    lines = [line.split() for line in file.getvalue().splitlines() if "depthwise" in line]
    assert len(lines) == 3
    assert lines[0][:4] == ["mobilenet_v1", "depthwise_separable", "98.00", "+0.00"]


def test_width_and_options_are_shown_where_they_vary(write_run, tmp_path):
    write_run("a", width_mult=0.25)
    assert "width 0.25" in words.heading(tables_of(tmp_path)[0])
    for size in (4, 8):
        write_run(f"g{size}", conv="grouped", conv_options={"group_size": size, "mid": None})
    (table,) = tables_of(tmp_path)
    cells = cells_of(columns(table))
    assert cells["width"] == ("0.25", "1", "1")
    assert cells["conv"] == ("standard", "grouped group_size=4", "grouped group_size=8")
    assert "width" not in words.heading(table)


def test_legend_says_what_cannot_be_concluded(write_run, tmp_path, latency, as_separable):
    write_run("a", latency=[latency, latency | {"device": "cuda"}], **as_separable)
    text = "\n".join(words.legend(tables_of(tmp_path)[0]))
    assert "one seed" in text
    assert "no diff and no ratio for mobilenet_v1" in text
    assert "against conv=standard" not in text
    assert "p50: median time of one batch; cpu" in text
    assert "different conditions have no ratio" in text


def test_split_tables_say_why(write_run, tmp_path):
    write_run("a")
    write_run("b", config__recipe__lr=0.1, data__fingerprint="abcdef" * 9)
    first, second = tables_of(tmp_path)
    assert words.distinction(first).endswith("here: data.fingerprint=01234567, recipe.lr=0.2")
    assert words.distinction(second).endswith("here: data.fingerprint=abcdefab, recipe.lr=0.1")


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(1, "1x"), (0.125, "0.12x"), (0.0366, "0.037x"), (0.00123, "0.0012x"), (12.34, "12.3x")],
)
def test_ratio_text(ratio, text):
    assert ratio_text(ratio) == text


def test_every_latency_has_a_line_of_its_own(write_run, tmp_path, latency, as_separable):
    compiled = latency | {"runtime": "compiled", "stable": False, "p50_ms": 2.0}
    large = latency | {"batch_size": 64, "p50_ms": 100.0, "p10_ms": None, "stable": None}
    write_run("a", latency=[latency, compiled, large])
    write_run("b", latency=[latency, compiled | {"p50_ms": 1.0}], **as_separable)
    (table,) = tables_of(tmp_path)
    cells = cells_of(latency_columns(table))
    assert cells == {
        "batch size": ("1", "1", "1", "1", "64"),
        "runtime": ("eager", "eager", "compiled", "compiled", "eager"),
        "network": ("standard", "depthwise_separable") * 2 + ("standard",),
        "p50 ms": ("4.00", "4.00", "2.00", "1.00", "100.00"),
        "p10": ("3.90", "3.90", "3.90", "3.90", "-"),
        "p90": ("4.20", "4.20", "4.20", "4.20", "4.20"),
        "steady": ("yes", "yes", "no", "no", "-"),
    }
    assert latency_columns(table)[6].cells == ("1x", "1x", "1x", "0.50x", "1x")
    assert conditions_name(table, table.conditions[1]) == "batch 1 compiled"
    (line,) = (line for line in words.warnings(table) if "batch 1 compiled" in line)
    assert line.endswith(": standard, depthwise_separable")
    assert [column.heading for column in columns(table)].count("p50 ms") == 1


def test_one_latency_has_its_percentiles_too(pair):
    (table,) = tables_of(pair)
    assert cells_of(latency_columns(table)) == {
        "network": ("standard", "depthwise_separable"),
        "p50 ms": ("4.00", "3.00"),
        "p10": ("3.90", "3.90"),
        "p90": ("4.20", "4.20"),
        "steady": ("yes", "yes"),
    }
    assert render.rich_latencies(table) is None  # the terminal has p50 in the table itself


def test_no_latency_needs_no_table(write_run, tmp_path):
    write_run("a", latency=[])
    assert latency_columns(tables_of(tmp_path)[0]) == []


def test_a_matched_row_shows_its_width_and_residual(write_run, tmp_path, as_matched):
    write_run("a")
    write_run("b", **as_matched)
    (table,) = tables_of(tmp_path)
    cells = cells_of(columns(table))
    assert cells["width"] == ("1", "2.8")
    assert cells["matched"] == ("-", "MACs -1.0%")
    assert row_label(table, table.rows[1]) == "depthwise_separable (matched MACs)"
    (line,) = words.warnings(table)
    assert "predictions.npz" in line
    assert line.endswith("depthwise_separable (matched MACs), seed 0")


def test_a_large_residual_is_a_warning(write_run, tmp_path, as_matched):
    write_run("a")
    match = as_matched["match"] | {"residual": 0.034}
    write_run("b", **as_matched | {"match": match})
    (table,) = tables_of(tmp_path)
    (first, *_) = words.warnings(table)
    assert "MACs +3.4% of standard's" in first
    (verdict,) = words.verdicts(table)
    assert "against standard, with 3 % more MACs: " in verdict


@pytest.mark.parametrize(
    ("quantity", "residual", "text"),
    [
        ("macs", 0.149, ", with 15 % more MACs"),
        ("params", -0.05, ", with 5 % fewer params"),
        ("latency", -0.1, ", with 10 % less latency"),
        ("macs", -0.01, ""),
    ],
)
def test_a_verdict_on_unequal_budgets_has_the_residual(
    write_run, tmp_path, as_matched, quantity, residual, text
):
    match = as_matched["match"] | {"quantity": quantity, "residual": residual}
    for seed, accuracy in enumerate((0.90, 0.91)):
        write_run(f"a{seed}", seed=seed, **{"metrics__test/acc": accuracy})
        better = {"metrics__test/acc": accuracy + 0.02 + 0.0001 * seed}
        write_run(f"b{seed}", seed=seed, **as_matched | {"match": match} | better)
    (verdict,) = words.verdicts(tables_of(tmp_path)[0])
    assert f"against standard{text}: n=2" in verdict
    assert verdict.endswith("better")


def test_a_matched_row_without_its_reference_says_what_it_needs(write_run, tmp_path, as_matched):
    write_run("b", **as_matched, config__model__width_mult=0.5)
    (line,) = (line for line in words.legend(tables_of(tmp_path)[0]) if "no diff" in line)
    assert "mobilenet_v1 (needs conv=standard, width 0.5, output stride 16)" in line


def test_the_folder_and_the_number_of_images_are_named(write_run, tmp_path):
    splits = {"train": 45_000, "val": 5_000, "test": 10_000}
    data = {"name": "folder", "fingerprint": "f" * 64, "splits": splits, "subset": None}
    write_run("a", data=data, config__data__root="pictures/flowers/")
    (table,) = tables_of(tmp_path)
    assert words.heading(table).startswith("folder flowers, input 1x32x32")
    line = "data: folder flowers, 45,000 train, 5,000 val, 10,000 test images"
    assert line in words.legend(table)


def test_which_checkpoint_was_tested_is_said(write_run, tmp_path, as_separable):
    def tested():
        (table,) = tables_of(tmp_path)
        return [line for line in words.legend(table) if line.startswith("tested: ")]

    write_run("a", epochs=20, best_epoch=17)
    assert tested()[0].endswith(" epoch 17")
    write_run("b", epochs=20, best_epoch=20, **as_separable)
    (line,) = tested()
    assert "epochs 17 to 20" in line
    assert "1 of 2 runs" in line


def test_without_validation_the_last_state_was_tested(write_run, tmp_path):
    write_run("a", epochs=20)
    (line,) = (one for one in words.legend(tables_of(tmp_path)[0]) if one.startswith("tested"))
    assert "last epoch" in line


def test_which_recipes_were_used_is_said(write_run, tmp_path, search):
    write_run("a", config__recipe={"lr": 0.2, "weight_decay": 1e-3})
    text = "\n".join(words.legend(tables_of(tmp_path)[0]))
    assert "one recipe for all (lr 0.2, weight_decay 0.001)" in text
    for conv in ("grouped", "mixed"):
        write_run(conv, search=search, conv=conv)
    text = "\n".join(words.legend(tables_of(tmp_path)[1]))
    assert "learning rate and weight decay searched per variant: 8 trials" in text
    assert "found for mixed: learning rate 0.3, weight decay 0.0001" in text
    assert "one recipe" not in text


def test_statistics_of_each_pair(write_run, tmp_path, as_separable):
    for seed in (0, 1, 2):
        write_run(f"a{seed}", seed=seed, right=range(40))
        write_run(f"b{seed}", seed=seed, right=range(9 + seed, 50), **as_separable)
    (table,) = tables_of(tmp_path)
    cells = cells_of(statistics_columns(table))
    assert cells == {
        "network": ("depthwise_separable",),
        "against": ("standard",),
        "seeds": ("0 1 2",),
        "diff by seed": ("+2.00 +0.00 -2.00",),
        "mean": ("+0.00",),
        "95 % t": ("[-4.97, +4.97]",),
        "95 % bootstrap": ("[-2.00, +2.00]",),
        "only ref : only this": ("9:10 10:10 11:10",),
        "McNemar p": ("1.000 1.000 1.000",),
    }
    (verdict,) = words.verdicts(table)
    assert verdict.startswith("mobilenet_v1 depthwise_separable against standard: n=3: ")
    assert verdict.endswith("+0.00 points, 95 % interval [-4.97, +4.97]: not distinguishable")
    assert "0 of 3 seeds" in words.statistics_legend(table)[0]


def test_seeds_that_contradict_each_other_are_told(write_run, tmp_path, as_separable):
    for seed, right in enumerate((range(2, 50), range(20), range(15))):
        write_run(f"a{seed}", seed=seed, right=range(30))
        write_run(f"b{seed}", seed=seed, right=right, **as_separable)
    (table,) = tables_of(tmp_path)
    assert "McNemar" not in words.verdicts(table)[0]
    assert "3 of 3 seeds (1 for, 2 against)" in words.statistics_legend(table)[0]


def test_a_single_seed_says_so(write_run, tmp_path, as_separable):
    write_run("a", right=range(40))
    write_run("b", right=range(20), **as_separable)
    (table,) = tables_of(tmp_path)
    (verdict,) = words.verdicts(table)
    for fact in ("n=1", "-40.00 points", "p=1.9e-06", ": worse; one seed"):
        assert fact in verdict
    assert cells_of(columns(table))["diff"] == ("0", "-40.00")
    assert table.rows[1].paired.verdict == "one seed: worse"


def test_no_common_seed_is_no_comparison(write_run, tmp_path, as_separable):
    write_run("a")
    write_run("b", seed=1, **as_separable)
    (table,) = tables_of(tmp_path)
    assert words.verdicts(table) == []
    (line,) = words.warnings(table)
    assert line.startswith("depthwise_separable: no seed in common")


def test_rows_that_a_grouping_does_not_tell_apart_are_kept_apart(write_run, tmp_path):
    for width in (0.5, 1.0):
        write_run(f"a{width}", width_mult=width)
        write_run(f"b{width}", width_mult=width, model="xception")
    by_width, by_conv, by_model = (
        tables_of(tmp_path, by=by)[0] for by in (("model", "width_mult"), ("conv",), ("model",))
    )
    assert not any("kept apart" in line for line in words.legend(by_width))
    assert any("4 rows are equal in conv but" in line for line in words.legend(by_conv))
    assert group_ends(by_model) == [False, True, False, False]
    assert group_ends(by_conv) == [False] * 4


def test_a_filter_is_said(write_run, tmp_path):
    write_run("a")
    write_run("b", conv="mixed")
    text = text_of(tmp_path, where={"conv": ("standard", "mixed"), "seed": ("0",)})
    assert "\nonly runs with conv=standard,mixed seed=0\n" in text


def test_labels_are_as_long_as_is_needed(write_run, tmp_path, as_separable, as_matched, search):
    write_run("a")
    write_run("b", **as_separable)
    write_run("c", **as_matched)
    write_run("d", model="xception", output_stride=8)
    write_run("e", model="xception", output_stride=4)
    write_run("f", model="xception", output_stride=4, params=1)
    (table,) = tables_of(tmp_path)
    assert {row.first.name: row_label(table, row) for row in table.rows} == {
        "a": "mobilenet_v1 standard",
        "b": "mobilenet_v1 depthwise_separable width 1",
        "c": "mobilenet_v1 depthwise_separable width 2.8 (matched MACs)",
        "d": "xception standard stride 8",
        "e": "xception standard stride 4 of 29294088 parameters and 400000000 MACs",
        "f": "xception standard stride 4 of 1 parameters and 400000000 MACs",
    }
    (first, *_) = words.verdicts(table)
    assert first.startswith("mobilenet_v1 depthwise_separable width 1 against standard: n=1")


def test_labels_of_recipes_that_were_searched_twice(write_run, tmp_path, search):
    write_run("a", search=search)
    write_run("b", search=search | {"best": {"lr": 0.1, "weight_decay": 1e-3}})
    (table,) = tables_of(tmp_path)
    assert [row_label(table, row) for row in table.rows] == [
        "standard lr=0.1 weight_decay=0.001",
        "standard lr=0.3 weight_decay=0.0001",
    ]
