"""The picture holds the table's numbers, and needs neither pyplot nor a display."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dwsep_zoo.report.figure import figure, pareto_front, pixels
from dwsep_zoo.report.results import load_results
from dwsep_zoo.report.table import make_tables


def table_of(path):
    (table,), _ = make_tables(load_results([path])[0])
    return table


def points(axes):
    """Marker positions as a set of rounded pairs."""
    lines = [line for line in axes.lines if line.get_marker() in ("s", "o")]
    return {
        (round(float(x), 6), round(float(y), 6)) for line in lines for x, y in line.get_xydata()
    }


def test_points_are_the_rows(pair):
    params, macs, latency, ratios = figure(table_of(pair)).axes
    assert points(params) == {(29.294088, 98.0), (4.231976, 97.0)}
    assert points(macs) == {(400.0, 98.0), (50.0, 97.0)}
    assert points(latency) == {(4.0, 98.0), (3.0, 97.0)}
    assert sorted(y for _, y in points(ratios)) == pytest.approx(
        sorted([4_231_976 / 29_294_088, 0.125, 0.75, 0.6]), abs=1e-6
    )


def test_error_bars_are_the_intervals(pair):
    table = table_of(pair)
    _, macs, *_ = figure(table).axes
    for row, container in zip(table.rows, macs.containers, strict=True):
        (bar,) = container[2]
        ((_, low), (_, high)) = bar.get_segments()[0]
        interval = row.accuracy.interval
        assert (low, high) == pytest.approx((100 * interval.low, 100 * interval.high))


def test_each_latency_has_a_panel(write_run, tmp_path, latency):
    runtimes = [latency | {"runtime": name} for name in ("eager", "compiled", "openvino")]
    write_run("a", latency=runtimes)
    labels = [axes.get_xlabel() for axes in figure(table_of(tmp_path)).axes]
    assert labels[2:] == [
        f"median latency of one batch, ms: {name}" for name in ("eager", "compiled", "openvino")
    ]


def test_one_seed_has_no_error_bar(write_run, tmp_path):
    write_run("a")
    assert all(not axes.containers for axes in figure(table_of(tmp_path)).axes)


@pytest.mark.parametrize(
    ("costs", "front"),
    [
        ([], []),
        ([(1, 5)], [0]),
        ([(2, 5), (1, 3)], [1, 0]),
        ([(1, 5), (2, 5), (3, 6)], [0, 2]),  # as good, but dearer
        ([(1, 4), (1, 5), (3, 2)], [1]),
    ],
)
def test_pareto_front(costs, front):
    assert pareto_front(costs) == front


@pytest.mark.parametrize("number", [1, 30])
def test_the_front_is_what_nothing_beats(number):
    costs = [tuple(pair) for pair in np.random.default_rng(number).random((number, 2))]
    front = pareto_front(costs)
    for index, (x, y) in enumerate(costs):
        beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in costs)
        assert (index in front) != beaten


def test_a_solved_width_is_hollow(write_run, tmp_path, as_matched):
    write_run("a")
    write_run("b", **as_matched)
    picture = figure(table_of(tmp_path))
    fills = {
        line.get_markerfacecolor() for line in picture.axes[0].lines if line.get_marker() == "o"
    }
    assert fills == {"white"}
    assert "width solved for an equal budget" in [
        text.get_text() for text in picture.legends[0].get_texts()
    ]


def test_without_standard_there_is_no_panel_of_ratios(write_run, tmp_path, as_separable):
    write_run("a", **as_separable)
    assert [axes.get_ylabel() for axes in figure(table_of(tmp_path)).axes] == [
        "test accuracy, %"
    ] * 3


def test_nothing_measured_is_said(write_run, tmp_path):
    write_run("a", latency=[], metrics={})
    for axes in figure(table_of(tmp_path)).axes:
        assert [text.get_text() for text in axes.texts] == ["not measured"]


def test_a_new_conv_type_has_a_marker_and_many_models_have_colours(write_run, tmp_path):
    for number in range(9):
        write_run(f"r{number}", model=f"m{number}", conv=f"new_{number}")
    picture = figure(table_of(tmp_path))
    (legend,) = picture.legends
    assert len(legend.get_texts()) == 19  # models, conv types, the Pareto front
    assert pixels(picture).ndim == 3


def test_pixels(pair):
    image = pixels(figure(table_of(pair)))
    assert image.dtype == np.uint8
    assert image.shape == (1080, 1128, 4)
    assert image.std() > 10


def test_imports_are_lazy_and_pyplot_is_never_used(pair):
    code = f"""
import sys
from dwsep_zoo.report import compare, load_results
from dwsep_zoo.report.table import make_tables
heavy = {{"matplotlib", "tensorboard", "lightning", "hydra"}} & set(sys.modules)
assert not heavy, heavy
from dwsep_zoo.report.figure import figure, pixels
pixels(figure(make_tables(load_results([{str(pair)!r}])[0])[0][0]))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
