"""The table as text."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from dwsep_zoo.report import render
from dwsep_zoo.report.results import load_results
from dwsep_zoo.report.table import make_tables


def tables_of(path):
    return make_tables(load_results([path])[0])[0]


GOLDEN = """\
# Comparison

## digits, input 1x32x32, 20 epochs, batch 64, output stride 16

| model        | conv                |  test acc % |   n |  diff | params M | ratio | MACs M | ratio | p50 ms | ratio | train s | ratio |
| ------------ | ------------------- | ----------: | --: | ----: | -------: | ----: | -----: | ----: | -----: | ----: | ------: | ----: |
| mobilenet_v1 | standard            | 98.00 \u00b11.00 |   3 |     0 |    29.29 |    1x |  400.0 |    1x |   4.00 |    1x |   100.0 |    1x |
| mobilenet_v1 | depthwise_separable | 97.00 \u00b11.41 |   2 | -1.00 |     4.23 | 0.14x |   50.0 | 0.12x |   3.00 | 0.75x |    60.0 | 0.60x |

- test accuracy: mean \u00b1 sample standard deviation over n runs, one per seed
- diff (points of accuracy) and ratio: against conv=standard of the same model, width and output stride
- standard: one dense k x k convolution replaces depthwise + pointwise; the norm and activation between the two disappear; a squeeze-and-excite gate acts on its input
- 1 MAC = one multiply-add = 2 FLOPs; convolutions and linear layers are counted, for one 1x32x32 image
- p50: median time of one batch; cpu Test CPU, 2 threads, batch 1, fp32, channels_last, eager
- train s: training with validation; Test CPU, 2 threads
"""  # noqa: E501


def test_markdown(pair):
    assert render.markdown(tables_of(pair)) == GOLDEN


def test_markdown_names_everything_that_is_in_no_table(write_run, tmp_path):
    write_run("a")
    write_run("broken", status="failed", error="out of memory")
    write_run("killed", status="running")
    (tmp_path / "runs/a/x").mkdir()
    (tmp_path / "runs/a/x/result.json").write_text("{")
    runs, problems = load_results([tmp_path])
    finished, *unfinished = runs
    text = render.markdown(
        make_tables([finished])[0], unfinished=unfinished, repeated=[finished], problems=problems
    )
    assert "- broken: failed: out of memory\n- killed: running\n" in text
    assert f"- {tmp_path / 'runs/a'}\n" in text
    assert f"- {tmp_path / 'runs/a/x/result.json'}: Expecting" in text


def test_csv_parses_back_to_the_raw_numbers(pair):
    tables = tables_of(pair)
    standard, separable = csv.DictReader(io.StringIO(render.csv_text(tables)))
    assert standard["conv"] == "standard"
    assert float(separable["test_acc_mean"]) == tables[0].rows[1].accuracy.mean
    assert float(separable["test_acc_std"]) == tables[0].rows[1].accuracy.std
    assert float(separable["test_acc_difference"]) == pytest.approx(-0.01)
    assert int(separable["params"]) == 4_231_976
    assert float(separable["params_ratio"]) == 4_231_976 / 29_294_088
    assert float(separable["macs_ratio"]) == 0.125
    assert float(separable["latency_p50_ms"]) == 3.0
    assert (separable["latency_threads"], separable["latency_runtime"]) == ("2", "eager")
    assert json.loads(separable["conv_options"]) == {"mid": None}
    assert (separable["n"], separable["seeds"]) == ("2", "0 1")
    assert separable["runs"] == "separable-s0 separable-s1"
    assert separable["data_fingerprint"] == "0123456789abcdef"


def test_csv_has_columns_for_every_condition(write_run, tmp_path, latency):
    write_run("a", latency=[latency, latency | {"runtime": "compiled", "p50_ms": 1.5}])
    (row,) = csv.DictReader(io.StringIO(render.csv_text(tables_of(tmp_path))))
    assert (row["latency_runtime"], row["latency_p50_ms"]) == ("eager", "4.0")
    assert (row["latency2_runtime"], row["latency2_p50_ms"]) == ("compiled", "1.5")


def test_missing_values_are_dashes_and_empty_fields(write_run, tmp_path):
    write_run("a", metrics={}, latency=[], time={}, images_per_second=None, macs=None)
    tables = tables_of(tmp_path)
    cells = {c.heading: c.cells for c in render.columns(tables[0]) if c.heading != "ratio"}
    for heading in ("test acc %", "diff", "MACs M", "train s"):
        assert cells[heading] == ("-",)
    (row,) = csv.DictReader(io.StringIO(render.csv_text(tables)))
    assert (row["test_acc_mean"], row["macs"], row["train_s"], row["n"]) == ("", "", "", "0")
    assert "no test accuracy" in render.markdown(tables)


def test_terminal_table_of_six_rows_fits(write_run, tmp_path, as_separable):
    for model in ("mobilenet_v1", "mobilenet_v2", "xception"):
        for seed in (0, 1):
            write_run(f"{model}-a{seed}", model=model, seed=seed)
            write_run(f"{model}-b{seed}", model=model, seed=seed, **as_separable)
    (table,) = tables_of(tmp_path)
    file = io.StringIO()
    console = Console(file=file, width=200)
    assert console.measure(render.rich_table(table)).maximum <= 115
    assert console.measure(render.rich_table(table, dense=True)).maximum <= 103
    console.print(render.rich_table(table))
    lines = [line.split() for line in file.getvalue().splitlines() if "depthwise" in line]
    assert len(lines) == 3
    assert lines[0][:4] == ["mobilenet_v1", "depthwise_separable", "98.00", "\u00b10.00"]


def test_width_and_options_are_shown_where_they_vary(write_run, tmp_path):
    write_run("a", width_mult=0.25)
    assert "width 0.25" in render.heading(tables_of(tmp_path)[0])
    for size in (4, 8):
        write_run(f"g{size}", conv="grouped", conv_options={"group_size": size, "mid": None})
    (table,) = tables_of(tmp_path)
    cells = {column.heading: column.cells for column in render.columns(table)}
    assert cells["width"] == ("0.25", "1", "1")
    assert cells["conv"] == ("standard", "grouped group_size=4", "grouped group_size=8")
    assert "width" not in render.heading(table)


def test_legend_says_what_cannot_be_concluded(write_run, tmp_path, latency, as_separable):
    write_run("a", latency=[latency, latency | {"device": "cuda"}], **as_separable)
    text = "\n".join(render.legend(tables_of(tmp_path)[0]))
    assert "single seed, which gives no spread" in text
    assert "no diff and no ratio for mobilenet_v1" in text
    assert "against conv=standard" not in text
    assert "p50a: median time of one batch; cpu" in text
    assert "p50b: median time of one batch; cuda" in text
    assert "different conditions have no ratio" in text


def test_split_tables_say_why(write_run, tmp_path):
    write_run("a")
    write_run("b", config__recipe__lr=0.1, data__fingerprint="abcdef" * 9)
    first, second = tables_of(tmp_path)
    assert render.distinction(first).endswith("here: data.fingerprint=01234567, recipe.lr=0.2")
    assert render.distinction(second).endswith("here: data.fingerprint=abcdefab, recipe.lr=0.1")


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(1, "1x"), (0.125, "0.12x"), (0.0366, "0.037x"), (0.00123, "0.0012x"), (12.34, "12.3x")],
)
def test_ratio_text(ratio, text):
    assert render.ratio_text(ratio) == text
