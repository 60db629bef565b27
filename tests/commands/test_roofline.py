"""The tables of a roofline hold its numbers and fit a terminal."""

import io
import math

import pytest
from rich.console import Console

from dwsep_zoo.commands.profile_tables import roofline_tables
from dwsep_zoo.schema.roofline import Bandwidth, KindTime, LayerTime, NetworkTime, Peaks, Roofline

LAYER = "stages.10.10.conv.pointwise"


def network(name):
    layers = [
        LayerTime(LAYER, "pointwise", 10**9, 1000, 999.9, 1234.567, "overhead", 1.0),
        *(LayerTime(k, k, 0, 1000, 0.0, 1.5, "memory", 0.2) for k in ("norm/act", "shortcut")),
    ]
    units = [KindTime(x.kind, 1, x.macs, 1000, x.time_ms, x.bound, x.attained) for x in layers]
    rest = KindTime("rest", 0, 0, 0, 50.0, "overhead", 0.0)
    return NetworkTime(name, 1300.0, 1300.0, tuple(layers), (*units, rest))


def text_of(*names):
    peaks = Peaks(100.0, (Bandwidth(2**20, 200.0), Bandwidth(2**28, 20.0)), {"dense": 0.03})
    roofline = Roofline(
        device="cpu",
        device_name="Some CPU",
        threads=2,
        batch_size=1,
        input_size=(3, 224, 224),
        precision="fp32",
        memory_format="channels_last",
        runtime="eager",
        runs=20,
        peaks=peaks,
        networks=tuple(map(network, names)),
    )
    file = io.StringIO()
    for part in roofline_tables(roofline):
        Console(width=100, file=file).print(part)
    return file.getvalue()


def test_tables_fit_a_terminal_and_hold_the_numbers():
    text = text_of("standard", "depthwise_separable")
    assert max(map(len, text.splitlines())) <= 100
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for word in ("standard", "depthwise_separable", LAYER, "1000.0", "1234.6", "1300.0", "96 %"):
        assert word in text


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_any_number_of_networks(number):
    text = text_of(*(f"net{i}" for i in range(number)))
    assert text.count("Time by kind of unit") == math.ceil(number / 2)
    assert text.count("slowest layers") == number
