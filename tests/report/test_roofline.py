"""The picture holds the measured numbers."""

from __future__ import annotations

import io
import itertools

import matplotlib as mpl
import pytest
from matplotlib.collections import PathCollection

from dwsep_zoo.analysis.peaks import Bandwidth, Peaks
from dwsep_zoo.analysis.roofline import KindTime, LayerTime, NetworkTime, Roofline
from dwsep_zoo.analysis.units import KINDS
from dwsep_zoo.report.figure import pixels
from dwsep_zoo.report.roofline import KIND_COLOURS, roofline_figure

LAYERS = (
    # name, kind, MACs, bytes, intensity, ms, bound, attained
    LayerTime("a", "depthwise", 10**6, 10**6, 4.0, 0.5, "memory", 0.1),
    LayerTime("b", "norm/act", 0, 10**6, 0.0, 0.2, "memory", 0.1),
    LayerTime("c", "pointwise", 10**8, 10**6, 400.0, 2.0, "compute", 0.6),
)
UNITS = (
    *(KindTime(la.kind, 1, la.macs, la.bytes, la.time_ms, la.bound, la.attained) for la in LAYERS),
    KindTime("rest", 0, 0, 0, 0.3, "overhead", 0.0),
)


def roofline(*names, layers=LAYERS, units=UNITS):
    return Roofline(
        device="cpu",
        device_name="Some CPU",
        threads=2,
        batch_size=2,
        input_size=(3, 32, 32),
        precision="fp32",
        memory_format="channels_last",
        runtime="eager",
        runs=10,
        peaks=Peaks(300.0, (Bandwidth(2**18, 100.0), Bandwidth(2**28, 20.0)), {}),
        networks=tuple(NetworkTime(name, 3.0, 3.1, layers, units) for name in names),
    )


def test_every_kind_has_a_colour_of_its_own():
    assert set(KIND_COLOURS) == set(KINDS)
    assert len(set(KIND_COLOURS.values())) == len(KINDS)


def test_markers_are_the_layers_that_multiply():
    layers, _ = roofline_figure(roofline("standard", "depthwise_separable")).axes
    marks = [c for c in layers.collections if isinstance(c, PathCollection)]
    points = sorted(tuple(float(v) for v in mark.get_offsets()[0]) for mark in marks)
    # FLOP/s: 2 per MAC, 2 images
    attained = [(4.0, 4e6 / 0.5e-3 / 1e9), (400.0, 4e8 / 2e-3 / 1e9)]
    assert points == [pytest.approx(p) for p in sorted(2 * attained)]
    areas = {float(mark.get_offsets()[0][0]): float(mark.get_sizes()[0]) for mark in marks}
    assert areas[400.0] == pytest.approx(4 * areas[4.0])  # 2 ms against 0.5


def test_ceilings_are_the_measured_ones():
    layers, _ = roofline_figure(roofline("standard")).axes
    for line, gb_s in zip(layers.lines, (100.0, 20.0), strict=True):
        for x, y in line.get_xydata():
            assert y == pytest.approx(min(300.0, gb_s * x))


def test_bars_are_the_time_by_kind():
    _, bars = roofline_figure(roofline("standard", "mixed")).axes
    lengths = [patch.get_width() for patch in bars.patches]
    assert lengths == pytest.approx(2 * [0.5, 2.0, 0.2, 0.3])
    ends = [patch.get_x() + patch.get_width() for patch in bars.patches]
    assert max(ends) == pytest.approx(3.0)
    texts = [text.get_text() for text in bars.texts]
    assert {"standard: 3 ms", "mixed: 3 ms", "pointwise 67 %"} <= set(texts)


def test_no_words_overlap_however_many_networks():
    names = [f"mobilenet_v{n} depthwise_separable width 0.0156 (matched MACs)" for n in range(9)]
    picture = roofline_figure(roofline(*names))
    picture.canvas.draw()
    _, bars = picture.axes
    boxes = [text.get_window_extent() for text in bars.texts]
    assert len(boxes) > 2 * len(names)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(bars.bbox.x0 - 1 <= box.x0 and box.x1 <= picture.bbox.x1 for box in boxes)


@pytest.mark.parametrize("number", [1, 2, 9])
def test_networks_have_markers_of_their_own(number):
    names = ["standard", "mixed", *(f"network {i}" for i in range(7))][:number]
    picture = roofline_figure(roofline(*names))
    (legend,) = picture.legends
    marked = [h for h in legend.legend_handles if hasattr(h, "get_marker")]
    assert [t.get_text() for t in legend.get_texts()][-number:] == names
    assert len({h.get_marker() for h in marked}) == number
    assert pixels(picture).ndim == 3


def test_nothing_that_multiplies_is_drawn_too():
    quiet = roofline("pool", layers=LAYERS[1:2], units=UNITS[1:2])
    assert pixels(roofline_figure(quiet)).ndim == 3


def test_text_is_text_in_svg():
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        roofline_figure(roofline("standard", "depthwise_separable")).savefig(file, format="svg")
    for words in ("300 GFLOP/s", "20 GB/s at 256 MiB", "intensity, FLOP per byte", "Some CPU"):
        assert words in file.getvalue()
