"""The figures hold the table's numbers, and need neither pyplot nor a display."""

from __future__ import annotations

import csv
import subprocess
import sys
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from dwsep_zoo.report.drawn import pareto_front
from dwsep_zoo.report.figures import comparison_figure
from dwsep_zoo.report.figures.cost import cost_panels
from dwsep_zoo.report.figures.curves import curve_panels
from dwsep_zoo.report.figures.differences import difference_panel
from dwsep_zoo.report.figures.panel import alone
from dwsep_zoo.report.figures.ratios import ratio_panel
from dwsep_zoo.report.figures.style import legend
from dwsep_zoo.report.figures.svg import document, inline
from dwsep_zoo.report.results import load_results
from dwsep_zoo.report.table import make_tables

pytestmark = pytest.mark.bounds

ROWS = [f"t1r{n}" for n in range(9)]


def table_of(path):
    (table,), _ = make_tables(load_results([path])[0])
    return table


def places(drawing):
    """The place of each mark with one point."""
    found = [mark.artist.get_xydata() for mark in drawing.marks]
    return [tuple(float(v) for v in xy[0]) for xy in found if len(xy) == 1]


def test_marks_are_the_rows(pair):
    table = table_of(pair)
    wanted = {
        "parameters": [(29.294088, 98.0), (4.231976, 97.0)],
        "MACs": [(400.0, 98.0), (50.0, 97.0)],
        "median latency": [(4.0, 98.0), (3.0, 97.0)],
    }
    for panel, (name, points) in zip(cost_panels(table), wanted.items(), strict=True):
        drawing = alone(panel)
        assert name in panel.title
        assert places(drawing) == [pytest.approx(point) for point in points]
        assert [mark.row for mark in drawing.marks] == [0, 1]
    ratios = [y for _, y in places(alone(ratio_panel(table)))]
    assert ratios == pytest.approx([4_231_976 / 29_294_088, 0.125, 0.75, 0.6], abs=1e-6)


def test_error_bars_are_the_intervals(pair):
    table = table_of(pair)
    (axes,) = alone(cost_panels(table)[1]).figure.axes
    for row, container in zip(table.rows, axes.containers, strict=True):
        (bar,) = container[2]
        ((_, low), (_, high)) = bar.get_segments()[0]
        interval = row.accuracy.interval
        assert (low, high) == pytest.approx((100 * interval.low, 100 * interval.high))


def test_each_latency_has_a_panel(write_run, tmp_path, latency):
    names = ("eager", "compiled", "openvino")
    write_run("a", latency=[latency | {"runtime": name} for name in names])
    titles = [panel.title for panel in cost_panels(table_of(tmp_path))]
    assert [title.split(": ")[-1] for title in titles[2:]] == list(names)


def test_one_seed_has_no_error_bar(write_run, tmp_path):
    write_run("a")
    assert all(not axes.containers for axes in comparison_figure(table_of(tmp_path)).figure.axes)


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
    table = table_of(tmp_path)
    for panel in cost_panels(table):
        fills = [mark.artist.get_markerfacecolor() for mark in alone(panel).marks]
        edges = [mark.artist.get_markeredgecolor() for mark in alone(panel).marks]
        assert fills[1] == edges[0]  # the page's colour
        assert fills[0] != fills[1]
    assert sum("solved" in handle.get_label() for handle in legend(table)) == 1


def test_a_taught_network_is_half_filled(write_run, tmp_path, as_separable):
    write_run("a")
    write_run("b", **as_separable)
    write_run("c", teacher={"name": "a", "kind": "kd", "weight": 0.9}, **as_separable)
    table = table_of(tmp_path)
    for panel in cost_panels(table):
        fills = [mark.artist.get_fillstyle() for mark in alone(panel).marks]
        assert fills == ["full", "full", "left"]
    assert sum("teacher" in handle.get_label() for handle in legend(table)) == 1


def test_without_a_reference_there_are_no_ratios_and_differences(write_run, tmp_path, as_separable):
    write_run("a", **as_separable)
    assert ratio_panel(table_of(tmp_path)) is None
    assert difference_panel(table_of(tmp_path)) is None


def test_nothing_measured_is_said(write_run, tmp_path):
    write_run("a", latency=[], metrics={})
    drawing = comparison_figure(table_of(tmp_path))
    assert not drawing.marks
    for axes in drawing.figure.axes:
        assert [text.get_text() for text in axes.texts] == ["not measured"]


def test_a_new_conv_type_has_a_marker_and_many_models_have_colours(write_run, tmp_path):
    for number in range(9):
        write_run(f"r{number}", model=f"m{number}", conv=f"new_{number}")
    table = table_of(tmp_path)
    assert len(legend(table)) == 19  # models, conv types, the Pareto front
    assert len(alone(cost_panels(table)[0]).marks) == 9


def test_curves_are_means_of_the_epochs_that_all_seeds_have(write_run, tmp_path):
    for seed, last in enumerate((4, 4, 3)):
        folder = write_run(f"s{seed}", seed=seed)
        lines = [[epoch, 0.1 * epoch + 0.01 * seed, 100 / epoch**3] for epoch in range(1, last + 1)]
        with (folder / "metrics.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["epoch", "val/acc", "val/loss"], *lines])
    ((_, (accuracy, loss), handles),) = curve_panels(table_of(tmp_path))
    assert len(handles) == 1
    drawing = alone(accuracy)
    assert places(drawing) == [pytest.approx((3, 31))]  # seed 2 stopped at 3
    (axes,) = drawing.figure.axes
    mean = max((line for line in axes.lines if len(line.get_xdata()) > 1), key=lambda x: x.get_lw())
    assert mean.get_xydata() == pytest.approx(np.array([(e, 10 * e + 1) for e in (1, 2, 3)]))
    assert sorted(len(mark.artist.get_xdata()) for mark in drawing.marks) == [1, 3, 4, 4]
    assert alone(loss).figure.axes[0].get_yscale() == "log"  # from 100 to 1.6


def test_differences_stand_at_their_values(pair):
    table = table_of(pair)
    drawing = alone(difference_panel(table))
    (paired,) = [row.paired for row in table.rows if row.paired]
    wanted = [100 * value for value in (*paired.differences, paired.mean)]
    assert [x for x, _ in places(drawing)] == pytest.approx(wanted)
    intervals = [mark.artist.get_xdata() for mark in drawing.marks if "interval by" in mark.text]
    ends = [(100 * i.low, 100 * i.high) for i in (paired.t, paired.bootstrap)]
    assert [tuple(x) for x in intervals] == [pytest.approx(end) for end in ends]


def test_svg_has_titles_and_is_the_same_each_time(pair):
    table = table_of(pair)
    for write in (document, lambda drawing: inline(drawing, "x-", ROWS)):
        first, second = (write(comparison_figure(table)) for _ in range(2))
        assert first == second
        titles = {node.text for node in ET.fromstring(first).iter() if node.tag.endswith("title")}
        assert {mark.text for mark in comparison_figure(table).marks} <= titles
        assert "test accuracy, %" in first  # words stay words
        assert "<date" not in first
    assert "style=" not in first
    assert all(row in first for row in ROWS[: len(table.rows)])


def test_pixels(pair):
    image = comparison_figure(table_of(pair)).pixels()
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
from dwsep_zoo.report.figures import comparison_figure
comparison_figure(make_tables(load_results([{str(pair)!r}])[0])[0][0]).pixels()
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
