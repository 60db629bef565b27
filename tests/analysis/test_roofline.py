"""Every layer is in one unit, times are those of a known clock, and words follow the numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from dwsep_zoo import count, create_model, list_convs, list_models
from dwsep_zoo.analysis import peaks as peaks_module
from dwsep_zoo.analysis.bottleneck import conditions, gaps, sentence
from dwsep_zoo.analysis.device import Clock
from dwsep_zoo.analysis.peaks import measure_peaks
from dwsep_zoo.analysis.roofline import measure_roofline
from dwsep_zoo.analysis.runtimes import Workload
from dwsep_zoo.analysis.stopwatch import HookCost
from dwsep_zoo.analysis.units import operator, units, works
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.parse import parse
from dwsep_zoo.schema.roofline import (
    KINDS,
    NORM_ACT,
    SHORTCUT,
    Bandwidth,
    KindTime,
    LayerTime,
    NetworkTime,
    Peaks,
    Roofline,
    Work,
    traffic_of,
)

PEAKS = Peaks(
    gflop_s=100.0,
    bandwidths=(Bandwidth(2**20, 200.0), Bandwidth(2**28, 20.0)),
    call_ms={
        **dict.fromkeys(("dense", "pointwise", "grouped", "depthwise", "linear"), 0.03),
        **{"norm": 0.008, "other": 0.002},
    },
)
FAMILIES = ("mobilenet_v1", "mobilenet_v3_small", "mobilenet_v4_conv_small", "xception")
VARIANTS = [(name, "depthwise_separable") for name in ("mobilenet_v2", "efficientnet_b0")]
VARIANTS += [("mobilenet_v1", conv) for conv in list_convs()]
VARIANTS += [(name, conv) for name in FAMILIES[1:] for conv in ("standard", "mixed")]
SLOW = [(n, c) for n in list_models() for c in list_convs() if (n, c) not in VARIANTS]


def meta(name, conv="depthwise_separable", **options):
    with torch.device("meta"):
        return create_model(name, conv=conv, drop_path_rate=0.0, **options)


# --- units


@pytest.mark.parametrize(
    ("name", "conv"), [*VARIANTS, *(pytest.param(*v, marks=pytest.mark.slow) for v in SLOW)]
)
def test_every_layer_is_in_one_unit_and_every_mac_is_counted(name, conv):
    model = meta(name, conv)
    parts = list(units(model))
    inside = [m for u in parts if u.kind != SHORTCUT for m in u.module.modules()]
    assert len(inside) == len(set(inside))
    for path, module in model.named_modules():
        is_layer = isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d)
        is_act = type(module).__module__ == "torch.nn.modules.activation"
        if is_layer or is_act:
            assert module in inside, path
    work = works(model, (3, 64, 64))
    assert sum(w.macs for w in work) == count(model, (3, 64, 64)).macs
    assert {w.kind for w in work} <= set(KINDS)
    assert sorted(w.name for w in work) == sorted(u.name for u in parts)
    norms_and_acts = [w for w in work if w.kind == NORM_ACT]
    assert all(w.macs == 0 and w.calls in (("norm",), ("other",)) for w in norms_and_acts)


@pytest.mark.parametrize(
    ("model", "conv", "unit", "kind"),
    [
        ("mobilenet_v2", "standard", "stem.0.conv", "stem"),
        ("mobilenet_v2", "standard", "stem.0.norm", "norm/act"),
        ("mobilenet_v2", "standard", "stages.1.0.expand.conv", "expansion"),
        ("mobilenet_v2", "standard", "stages.1.0.conv.dense", "dense"),
        ("mobilenet_v2", "depthwise_separable", "stages.1.0.conv.depthwise", "depthwise"),
        ("mobilenet_v2", "depthwise_separable", "stages.1.0.conv.pointwise", "pointwise"),
        ("mobilenet_v2", "depthwise_separable", "stages.1.1", "shortcut"),
        ("mobilenet_v2", "mixed", "stages.1.0.conv.depthwise", "depthwise"),
        ("mobilenet_v2", "grouped", "stages.1.0.conv.grouped", "grouped"),
        ("mobilenet_v2", "blueprint", "stages.1.0.conv.depthwise", "depthwise"),
        ("mobilenet_v2", "spatially_separable", "stages.1.0.conv.vertical", "dense"),
        ("mobilenet_v2", "standard", "head.conv", "head"),
        ("mobilenet_v2", "standard", "classifier", "head"),
        ("mobilenet_v2", "standard", "pool.0", "pooling"),
        ("mobilenet_v3_small", "standard", "stages.0.0.conv.gate", "squeeze-excite"),
        ("mobilenet_v3_small", "standard", "hidden.0", "head"),
        ("mobilenet_v4_conv_medium", "standard", "stages.0.0.expand.conv", "expansion"),
        ("xception", "depthwise_separable", "stages.0.0.shortcut.0", "pointwise"),
        ("xception", "depthwise_separable", "stages.3.0", "shortcut"),
        ("xception", "depthwise_separable", "stages.0.0.pool", "pooling"),
    ],
)
def test_kind_of_a_unit(model, conv, unit, kind):
    assert {u.name: u.kind for u in units(meta(model, conv))}[unit] == kind


def test_a_network_from_elsewhere_is_told_by_its_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Conv2d(8, 8, 1))
    assert [u.kind for u in units(model)] == ["dense", "norm/act", "norm/act", "pointwise"]


def test_work_by_hand():
    work = {w.name: w for w in works(meta("mobilenet_v2"), (3, 224, 224))}
    depthwise = work["stages.1.0.conv.depthwise"]  # 96 channels, 112 -> 56 pixels
    assert depthwise.macs == 9 * 96 * 56 * 56
    assert depthwise.activations == 96 * (112 * 112 + 56 * 56)
    assert (depthwise.weights, depthwise.calls) == (9 * 96, ("depthwise",))
    assert work["stages.1.0.conv.mid.0"].weights == 4 * 96  # mean, variance, scale, shift
    assert work["stages.1.1"].calls == ("other",)
    assert work["stages.1.1"].activations == 3 * 24 * 56 * 56  # two read, one written
    assert traffic_of(depthwise, 4, 2) == 2 * (4 * depthwise.activations + depthwise.weights)


def test_a_gate_counts_the_operators_in_it():
    gate = next(w for w in works(meta("mobilenet_v3_small"), (3, 224, 224)) if "gate" in w.name)
    # pool, reduce, activation, expand, gate, product
    assert gate.calls == ("other", "pointwise", "other", "pointwise", "other", "other")


# --- ceilings


@pytest.mark.parametrize(
    ("traffic", "gb_s"),
    [(1, 200), (2**20, 200), (2**24, 110), (2**28, 20), (2**40, 20)],
)
def test_bandwidth_between_the_measured_ones(traffic, gb_s):
    assert PEAKS.bandwidth(traffic) == pytest.approx(gb_s)


def test_bandwidth_never_rises_with_the_traffic():
    slow_call = replace(PEAKS, bandwidths=(Bandwidth(2**18, 5.0), *PEAKS.bandwidths))
    values = [slow_call.bandwidth(2**power) for power in range(16, 32)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 200


def test_limits_by_hand():
    limits = PEAKS.limits(
        Work("", "dense", 2 * 10**9, 10**9, 2**26, 0, ("dense", "norm", "other")), 2, 2
    )
    assert limits == pytest.approx(
        {"compute": 2 * 2 * 10**9 / 100e9 * 1e3, "memory": 2**28 / 20e9 * 1e3, "overhead": 0.04}
    )


def test_each_operator_is_charged_its_own_call(monkeypatch):
    """With a clock that only the operators move on, each by a time of its own."""
    fake = FakeTime()
    times = {"dense": 7.0, "pointwise": 5.0, "grouped": 11.0, "depthwise": 13.0, "linear": 3.0}
    times |= {"norm": 2.0, "other": 1.0}

    def taking(forward):
        def timed(self, x):
            fake.ms += times[operator(self)]
            return forward(self, x)

        return timed

    for kind in (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU):
        monkeypatch.setattr(kind, "forward", taking(kind.forward))
    monkeypatch.setattr(peaks_module, "TRAFFIC", ())
    monkeypatch.setattr(peaks_module, "_gflop_s", lambda *_: 1.0)
    cpu, none = torch.device("cpu"), HookCost()
    found = measure_peaks(cpu, torch.float32, fake.clock(), none)
    assert found.call_ms == times


# --- time


class FakeTime:
    """A clock that stands still but for what is done: ``reading`` it takes time too."""

    def __init__(self, reading=0.0):
        self.ms, self.reading = 0.0, reading

    def now(self):
        self.ms += self.reading
        return self.ms

    def clock(self):
        return Clock(self.now, lambda start, end: end - start, lambda: None)


class Takes(nn.Conv2d):
    """A convolution that takes a known time."""

    def __init__(self, fake, ms, chans=1):
        super().__init__(chans, chans, 1)
        self.time = (fake, ms)

    def __deepcopy__(self, memo):
        return self  # with the same clock

    def forward(self, input):
        fake, ms = self.time
        fake.ms += ms
        return input


class Network(nn.Module):
    """Two convolutions, 3 and 5 ms, and 2 ms of something else."""

    def __init__(self, fake):
        super().__init__()
        self.first, self.second, self.fake = Takes(fake, 3.0), Takes(fake, 5.0), fake

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        self.fake.ms += 2.0
        return self.second(self.first(x))


@pytest.mark.parametrize("reading", [0.0, 0.5])
def test_known_times_are_found_and_hooks_taken_off(reading):
    fake = FakeTime(reading)
    (network,) = measure_roofline(
        {"a": Network(fake)}, (1, 8, 8), peaks=PEAKS, clock=fake.clock(), min_run_time=0
    ).networks
    assert [layer.time_ms for layer in network.layers] == pytest.approx([3, 5])
    by_kind = {unit.kind: unit.time_ms for unit in network.units}
    # The last reading of a pass is in both totals, and so in the rest.
    assert by_kind == pytest.approx({"pointwise": 8, "rest": 2 + reading})
    assert network.total_ms == pytest.approx(network.sum_ms) == pytest.approx(10 + reading)
    assert network.hooked_ms == pytest.approx(10 + 5 * reading)


def test_networks_take_turns():
    fake, order = FakeTime(), []
    models = {name: Network(fake) for name in "ab"}
    for name, model in models.items():
        model.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    measure_roofline(models, (1, 8, 8), peaks=PEAKS, clock=fake.clock(), min_run_time=0)
    rounds = "".join(order)[-60:]
    assert rounds == "aaabbb" * 10  # each untimed, without hooks and with them


def test_bounds_and_attained_fraction():
    fake = FakeTime()
    (network,) = measure_roofline(
        {"a": Network(fake)}, (1, 8, 8), peaks=PEAKS, clock=fake.clock(), min_run_time=0
    ).networks
    layer = network.layers[0]
    memory = layer.bytes / 200e9 * 1e3
    assert layer.bytes == 4 * (2 * 64 + 2)
    assert layer.intensity == 2 * 64 / layer.bytes
    assert layer.bound == "overhead"  # 30 us against a few ns
    assert layer.attained == pytest.approx(memory / 3)


@pytest.fixture(scope="module")
def measured():
    """A real measurement, of ceilings too, as short as can be."""
    patch = pytest.MonkeyPatch()
    patch.setattr(peaks_module, "TRAFFIC", (2**16, 2**20))
    patch.setattr(peaks_module, "BUDGET_MS", 0.0)
    patch.setattr(peaks_module, "LEAST_PRODUCT", 64)
    patch.setattr(peaks_module, "LONG_CALL_MS", 0.0)
    models = {
        conv: create_model("mobilenet_v3_small", conv=conv, width_mult=0.35, num_classes=10)
        for conv in ("standard", "depthwise_separable")
    }
    before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in models.items()}
    roofline = measure_roofline(
        models, (3, 32, 32), Workload(batch_size=2, threads=1), min_run_time=0
    )
    patch.undo()
    return models, before, roofline


def test_identities_of_a_real_measurement(measured):
    models, _, roofline = measured
    assert (roofline.batch_size, roofline.threads, roofline.input_size) == (2, 1, (3, 32, 32))
    assert roofline.peaks.gflop_s > 0
    calls = {"dense", "pointwise", "grouped", "depthwise", "linear", "norm", "other"}
    assert set(roofline.peaks.call_ms) == calls
    assert min(roofline.peaks.call_ms.values()) > 0
    for name, network in zip(models, roofline.networks, strict=True):
        assert network.name == name
        assert network.macs == count(models[name], (3, 32, 32)).macs
        assert all(layer.time_ms > 0 and layer.attained > 0 for layer in network.layers)
        for field in ("macs", "bytes", "time_ms"):
            units_sum = sum(getattr(u, field) for u in network.units if u.kind != "rest")
            assert units_sum == pytest.approx(sum(getattr(la, field) for la in network.layers))
        assert sum(unit.layers for unit in network.units) == len(network.layers)
        assert network.hooked_ms > 0
        # Loose: it is one core of a machine that may be busy.
        assert 0.2 < network.sum_ms / network.total_ms < 5


def test_the_networks_are_as_before(measured):
    models, before, _ = measured
    for name, model in models.items():
        assert all(torch.equal(v, before[name][k]) for k, v in model.state_dict().items())
        assert model.training
        hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
        assert hooks == []


def test_json_and_back(measured):
    *_, roofline = measured
    assert parse(Roofline, json.loads(json.dumps(roofline.plain()))) == roofline


def test_bfloat16_moves_half_the_bytes():
    model = create_model("mobilenet_v1", width_mult=0.25, num_classes=2, output_stride=8)
    runs = {
        precision: measure_roofline(
            {"a": model}, (3, 16, 16), Workload("eager", precision), peaks=PEAKS, min_run_time=0
        )
        for precision in ("fp32", "bf16")
    }
    fp32, bf16 = (runs[p].networks[0].layers for p in ("fp32", "bf16"))
    assert [2 * layer.bytes for layer in bf16] == [layer.bytes for layer in fp32]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"threads": 0}, "threads must be at least 1; got 0"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"models": {}}, "no networks to measure"),
        *(
            []
            if torch.cuda.is_available()
            else [({"device": "cuda"}, "PyTorch finds no CUDA device")]
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(options, message):
    fake = FakeTime()
    models = options.pop("models", {"a": Network(fake)})
    with pytest.raises(UserError, match=message):
        measure_roofline(models, (1, 8, 8), Workload(**options))
    assert fake.ms == 0


# --- words


def layer(kind, bound, time_ms, attained=0.5, macs=0):
    return LayerTime(f"x.{kind}", kind, macs, 1000, 2 * macs / 1000, time_ms, bound, attained)


def network(name, total_ms, layers, rest_ms=0.0):
    kinds = [
        KindTime(la.kind, 1, la.macs, la.bytes, la.time_ms, la.bound, la.attained) for la in layers
    ]
    rest = KindTime("rest", 0, 0, 0, rest_ms, "overhead", 0.0)
    return NetworkTime(name, total_ms, total_ms, tuple(layers), (*kinds, rest))


def roofline_of(*networks):
    return Roofline(
        device="cpu",
        device_name="Some CPU",
        threads=2,
        batch_size=1,
        input_size=(3, 224, 224),
        precision="fp32",
        memory_format="channels_last",
        runtime="eager",
        runs=20,
        peaks=PEAKS,
        networks=networks,
    )


STANDARD = network("standard", 19.0, [layer("dense", "compute", 19.0, 0.8, macs=8600)])
MEMORY = [
    layer("pointwise", "compute", 3.0, 0.7, macs=900),
    layer("depthwise", "memory", 4.0, 0.5, macs=100),
    layer("norm/act", "memory", 1.5, 0.2),
    layer("shortcut", "memory", 0.5, 0.2),
    layer("squeeze-excite", "memory", 0.1, 0.2),
]
SLOW = [replace(la, time_ms=3.8 * la.time_ms) for la in MEMORY]


@pytest.mark.parametrize(
    ("other", "compared", "explained"),
    [
        (
            network("faster", 10.0, MEMORY, rest_ms=0.9),
            "8.6x fewer MACs, 1.9x faster",
            ("60 %", "bandwidth-bound depthwise and elementwise", "40 %"),
        ),
        (
            network("slower", 38.0, SLOW, rest_ms=3.42),
            "8.6x fewer MACs, yet 2.0x slower",
            ("60 %", "bandwidth-bound depthwise and elementwise", "40 %"),
        ),
        (
            network("calls", 19.1, MEMORY, rest_ms=10.0),
            "8.6x fewer MACs, yet about as fast",
            ("52 %", "call"),
        ),
        (
            network("compute", 9.5, [layer("pointwise", "compute", 9.5, 0.25, macs=8600)]),
            "as many MACs, 2.0x faster",
            ("100 %", "compute-bound pointwise", "25 %"),
        ),
        (
            network("wide", 38.0, [layer("dense", "compute", 38.0, 0.8, macs=17200)]),
            "2.0x more MACs, 2.0x slower",
            ("100 %", "compute-bound dense", "80 %"),
        ),
        (
            network("near", 17.9, [layer("dense", "compute", 17.9, 0.8, macs=8300)]),
            "1.04x fewer MACs, 1.06x faster",
            ("100 %", "compute-bound dense", "80 %"),
        ),
    ],
    ids=lambda value: value.name if isinstance(value, NetworkTime) else "",
)
def test_sentence(other, compared, explained):
    first, second = sentence(roofline_of(STANDARD, other), "standard", other.name).split(": ")
    assert first == compared
    assert all(part in second for part in (other.name, *explained))


def test_a_latency_measured_by_itself_is_the_one_that_is_stated():
    twice = network("separable", 9.5, MEMORY, rest_ms=0.9)
    assert "2.0x faster" in sentence(roofline_of(STANDARD, twice), "standard", "separable")
    stated = sentence(roofline_of(STANDARD, twice), "standard", "separable", speed=1 / 1.5)
    assert stated.startswith("8.6x fewer MACs, yet 1.5x slower: ")


def test_sentence_of_a_network_that_was_not_measured():
    with pytest.raises(UserError, match="unknown network 'standrd'; did you mean 'standard'"):
        sentence(roofline_of(STANDARD), "standrd", "standard")


def test_conditions():
    expected = "cpu (Some CPU) 2 threads, eager, fp32, channels_last, batch 1, input 3x224x224"
    assert conditions(roofline_of(STANDARD)) == expected


def test_units_that_do_not_add_up_are_named():
    good = network("good", 10.5, [layer("dense", "compute", 10.0, macs=5)])
    busy = network("busy", 20.0, [layer("dense", "compute", 10.0, macs=5)])
    (line,) = gaps(roofline_of(good, busy))
    assert line.startswith("busy: its units add up to 50 % of its time")
    said = sentence(roofline_of(good, busy), "good", "busy")
    assert "50 % of its time" in said
    assert "bound" not in said


def test_more_than_the_ceiling_is_asked_about_and_not_stated():
    fast = network("fast", 10.0, [layer("dense", "compute", 10.0, 1.3, macs=5)])
    assert "130" not in sentence(roofline_of(STANDARD, fast), "standard", "fast")
    (line,) = gaps(roofline_of(STANDARD, fast))
    assert "x.dense by 30 %" in line


def test_damaged_records_are_refused_in_a_line(measured):
    values = json.loads(json.dumps(measured[2].plain()))
    assert parse(Roofline, {**values, "newer": 1}).networks == measured[2].networks
    with pytest.raises(UserError, match=r"^networks.0.layers must be ") as error:
        parse(Roofline, {**values, "networks": [{**values["networks"][0], "layers": "x"}]})
    assert "\n" not in str(error.value)
