"""The picture holds the measured numbers."""

from __future__ import annotations

import itertools

import pytest

from dwsep_zoo.report.figures.panel import alone
from dwsep_zoo.report.figures.roofline import (
    KIND_COLOURS,
    roofline_figure,
    roofline_legend,
    roofline_panels,
)
from dwsep_zoo.report.figures.svg import document
from dwsep_zoo.schema.roofline import (
    KINDS,
    Bandwidth,
    KindTime,
    LayerTime,
    NetworkTime,
    Peaks,
    Roofline,
)

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


def drawn(found):
    return [alone(panel) for panel in roofline_panels(found)]


def test_marks_are_the_layers_that_multiply():
    _, layers = drawn(roofline("standard", "depthwise_separable"))
    marks = [mark for mark in layers.marks if mark.row is not None]
    points = sorted(tuple(map(float, mark.artist.get_xydata()[0])) for mark in marks)
    # FLOP/s: 2 per MAC, 2 images
    attained = [(4.0, 4e6 / 0.5e-3 / 1e9), (400.0, 4e8 / 2e-3 / 1e9)]
    assert points == [pytest.approx(p) for p in sorted(2 * attained)]
    sizes = {float(m.artist.get_xdata()[0]): m.artist.get_markersize() for m in marks}
    assert sizes[400.0] == pytest.approx(2 * sizes[4.0])  # the area is the time: 2 ms against 0.5


def test_ceilings_are_the_measured_ones():
    _, layers = drawn(roofline("standard"))
    ceilings = [mark.artist for mark in layers.marks if mark.row is None]
    for line, gb_s in zip(ceilings, (100.0, 20.0), strict=True):
        for x, y in line.get_xydata():
            assert y == pytest.approx(min(300.0, gb_s * x))


def test_bars_are_the_time_by_kind():
    bars, _ = drawn(roofline("standard", "mixed"))
    patches = [mark.artist for mark in bars.marks]
    assert [patch.get_width() for patch in patches] == pytest.approx(2 * [0.5, 2.0, 0.2, 0.3])
    assert max(patch.get_x() + patch.get_width() for patch in patches) == pytest.approx(3.0)
    texts = " ".join(text.get_text() for text in bars.figure.axes[0].texts)
    assert "standard: 3 ms" in texts
    assert "pointwise 67%" in texts


@pytest.mark.parametrize("number", [2, 9])
def test_no_words_overlap_however_many_networks(number):
    names = [f"mobilenet_v{n} depthwise_separable width 0.0156 (matched)" for n in range(number)]
    bars, _ = drawn(roofline(*names))
    bars.pixels()
    (axes,) = bars.figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) >= 2 * len(names)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(axes.bbox.x0 - 1 <= box.x0 and box.x1 <= bars.figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize("number", [1, 2, 9])
def test_networks_have_markers_of_their_own(number):
    names = ["standard", "mixed", *(f"network {i}" for i in range(7))][:number]
    handles = roofline_legend(roofline(*names))[-number:]
    assert [handle.get_label() for handle in handles] == names
    assert len({handle.get_marker() for handle in handles}) == number


def test_nothing_that_multiplies_is_drawn_too():
    quiet = roofline("pool", layers=LAYERS[1:2], units=UNITS[1:2])
    assert roofline_figure(quiet).pixels().ndim == 3


def test_text_is_text_in_svg():
    text = document(roofline_figure(roofline("standard", "depthwise_separable")))
    for words in ("300 GFLOP/s", "20 GB/s at 256 MiB", "intensity, FLOP per byte", "Some CPU"):
        assert words in text
