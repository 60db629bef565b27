"""The picture holds the table's numbers, and needs neither pyplot nor a display."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dwsep_zoo.report.figure import figure, pixels
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
    macs, latency, ratios = figure(table_of(pair)).axes
    assert points(macs) == {(400.0, 98.0), (50.0, 97.0)}
    assert points(latency) == {(4.0, 98.0), (3.0, 97.0)}
    assert sorted(y for _, y in points(ratios)) == pytest.approx(
        sorted([4_231_976 / 29_294_088, 0.125, 0.75, 0.6]), abs=1e-6
    )
    assert len(macs.containers) == 2  # error bars: both rows have several seeds


def test_without_standard_there_is_no_panel_of_ratios(write_run, tmp_path, as_separable):
    write_run("a", **as_separable)
    assert len(figure(table_of(tmp_path)).axes) == 2


def test_nothing_measured_is_said(write_run, tmp_path):
    write_run("a", latency=[], metrics={})
    for axes in figure(table_of(tmp_path)).axes:
        assert [text.get_text() for text in axes.texts] == ["not measured"]


def test_a_new_conv_type_has_a_marker_and_many_models_have_colours(write_run, tmp_path):
    for number in range(9):
        write_run(f"r{number}", model=f"m{number}", conv=f"new_{number}")
    picture = figure(table_of(tmp_path))
    (legend,) = picture.legends
    assert len(legend.get_texts()) == 18
    assert pixels(picture).ndim == 3


def test_pixels(pair):
    image = pixels(figure(table_of(pair)))
    assert image.dtype == np.uint8
    assert image.shape == (588, 1620, 4)
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
