"""The fastest runtime, with the same outputs."""

import pytest
import torch
from helpers import calibrate
from torch import nn

import dwsep_zoo
from dwsep_zoo import UserError, create_model
from dwsep_zoo.analysis import optimise as module
from dwsep_zoo.analysis.runtimes import RUNTIMES, Runtime, Workload
from dwsep_zoo.nn.fuse import fold_norms

SIZE = (3, 32, 32)


@pytest.fixture
def images():
    return torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(images):
    """The first stages of a network: a whole one takes each runtime twice as long."""
    torch.manual_seed(0)
    whole = create_model("mobilenet_v1_shallow", width_mult=0.25, output_stride=8)
    features = nn.Sequential(whole.stem, whole.stages[:2], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(features, nn.Linear(features(images).shape[1], 5))
    calibrate(model, torch.randn(16, *SIZE))
    nn.init.normal_(model[1].weight, std=0.1)
    return model


@pytest.fixture
def no_compiler(monkeypatch):
    """Compiling takes a minute."""
    for name in ("compiled", "frozen"):
        absent = Runtime(RUNTIMES[name].prepare, missing=lambda: "a compiler")
        monkeypatch.setitem(RUNTIMES, name, absent)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_that_is_asked_for(model, images, name):
    if name in ("compiled", "frozen"):
        pytest.skip("tests/analysis/test_runtimes.py compiles")
    try:
        Workload(name).check()
    except UserError as error:
        pytest.skip(str(error))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = dwsep_zoo.optimise(model, runtime=name, input_size=SIZE, min_run_time=0.01)
    assert fast.runtime == name
    with torch.no_grad():
        want = model(images)
    for batch in (images, images[:1]):  # prepared for one image, and prepared when it is met
        assert torch.allclose(fast(batch), want[: len(batch)], atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_fastest_is_chosen_and_what_is_absent_is_named(model, images, no_compiler):
    fast = dwsep_zoo.optimise(model, input_size=SIZE, min_run_time=0.01)
    assert fast.runtime == min(fast.times_ms, key=fast.times_ms.get)
    assert {*fast.times_ms, *fast.left_out} == set(RUNTIMES)
    shown = repr(fast)
    assert fast.runtime in shown
    assert "Conv2d" not in shown
    assert "\n" not in shown
    assert "a compiler" in fast.left_out["compiled"]
    with torch.no_grad():
        assert torch.allclose(fast(images), model(images), atol=1e-4)


def test_a_runtime_that_computes_something_else_is_not_believed(model, no_compiler, monkeypatch):
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(RUNTIMES, name, RUNTIMES["compiled"])

    def wrong(network, x, precision, threads):
        fold_norms(network, x.shape[1:])
        return lambda images: network(images) * 1.01

    monkeypatch.setitem(RUNTIMES, "fused", Runtime(wrong))
    fast = dwsep_zoo.optimise(model, input_size=SIZE, min_run_time=0.01)
    assert fast.runtime != "fused"
    assert "differ from float32 PyTorch's by 1.0%" in fast.left_out["fused"]
    with pytest.raises(UserError, match="fused: its outputs differ"):
        dwsep_zoo.optimise(model, runtime="fused", input_size=SIZE)


class Constant(nn.Module):
    """Of the same outputs for any image, with a weight."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = nn.Parameter(torch.tensor(outputs))

    def forward(self, x):
        return self.outputs.expand(len(x), -1)


def few_runtimes(monkeypatch, **others):
    """Eager PyTorch, and those that are given as what prepares them."""
    for name in RUNTIMES.keys() - {"eager"}:
        monkeypatch.delitem(RUNTIMES, name)
    for name, prepare in others.items():
        monkeypatch.setitem(RUNTIMES, name, Runtime(prepare))


def gives(*outputs):
    return lambda network, x, precision, threads: Constant(*outputs)


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ((1.0, float("nan")), "not finite"),
        ((float("inf"), -2.0), "not finite"),
        ((1.0, -2.01), "by 0.5%"),
    ],
)
def test_outputs_that_are_wrong_or_no_numbers(monkeypatch, outputs, reason):
    few_runtimes(monkeypatch, wrong=gives(*outputs), right=gives(1.0, -2.001))
    fast = dwsep_zoo.optimise(Constant(1.0, -2.0), input_size=SIZE, min_run_time=0.01)
    assert set(fast.times_ms) == {"eager", "right"}
    assert reason in fast.left_out["wrong"]


def test_outputs_that_are_all_zero(monkeypatch):
    few_runtimes(monkeypatch, wrong=gives(0.0, 0.5), right=gives(0.0, 0.0))
    fast = dwsep_zoo.optimise(Constant(0.0, 0.0), input_size=SIZE, min_run_time=0.01)
    assert set(fast.times_ms) == {"eager", "right"}
    assert "by 0.5, and those are all 0" in fast.left_out["wrong"]


def test_a_network_without_finite_outputs():
    with pytest.raises(UserError, match="not finite"):
        dwsep_zoo.optimise(Constant(1.0, float("nan")), input_size=SIZE)


def test_a_runtime_that_fails_is_left_out_unless_it_was_asked_for(monkeypatch, caplog):
    def fails(network, x, precision, threads):
        raise RuntimeError("g++: cannot execute\nand much more")

    def fails_later(network, x, precision, threads):
        return lambda images: 1 / 0

    few_runtimes(monkeypatch, compiled=fails, openvino=fails_later)
    fast = dwsep_zoo.optimise(Constant(1.0), input_size=SIZE, min_run_time=0.01)
    assert fast.runtime == "eager"
    assert fast.left_out == {
        "compiled": "RuntimeError: g++: cannot execute",
        "openvino": "ZeroDivisionError: division by zero",
    }
    for name, reason in fast.left_out.items():
        assert f"runtime {name} failed: {reason}" in caplog.text
    with pytest.raises(RuntimeError, match="cannot execute"):
        dwsep_zoo.optimise(Constant(1.0), runtime="compiled", input_size=SIZE)


class Cancelling(Constant):
    """Adds and subtracts 1000, beside which bfloat16 has nothing smaller than 4."""

    def forward(self, x):
        return super().forward(x) + 1000 - 1000


def test_bf16_is_compared_with_float32(monkeypatch):
    """PyTorch in bf16 is not right by definition."""
    few_runtimes(monkeypatch, exact=gives(1.0, 1.5))
    model = Cancelling(1.0, 1.5)
    fast = dwsep_zoo.optimise(model, input_size=SIZE, precision="bf16", min_run_time=0.01)
    assert fast.runtime == "exact"
    assert "differ from float32 PyTorch's by" in fast.left_out["eager"]
    with pytest.raises(UserError, match="eager: its outputs differ"):
        dwsep_zoo.optimise(model, SIZE, runtime="eager", precision="bf16")
    few_runtimes(monkeypatch)
    with pytest.raises(UserError, match="eager: its outputs differ"):
        dwsep_zoo.optimise(model, input_size=SIZE, precision="bf16")


def test_bf16_is_what_it_says(images):
    # MobileNetV1 with norms that are calibrated to noise does not bear bfloat16.
    torch.manual_seed(0)
    model = create_model("mobilenet_v3_small", width_mult=0.25, num_classes=5, output_stride=8)
    calibrate(model, torch.randn(16, *SIZE))
    nn.init.normal_(model.get_classifier().weight, std=0.1)
    fast = dwsep_zoo.optimise(
        model, runtime="eager", input_size=SIZE, precision="bf16", min_run_time=0.01
    )
    with torch.no_grad():
        want = model(images)
    difference = (fast(images) - want).abs().max() / want.abs().max()
    assert 1e-4 < difference < module.AGREEMENT["bf16"]
    assert fast(images).dtype is torch.float32


def test_bad_input(model):
    with pytest.raises(UserError, match="did you mean 'openvino'"):
        dwsep_zoo.optimise(model, runtime="openvin")
    with pytest.raises(UserError, match="precision"):
        dwsep_zoo.optimise(model, input_size=SIZE, precision="bf61")
    with pytest.raises(UserError, match="input_size"):
        dwsep_zoo.optimise(nn.Linear(1, 1))


def test_a_size_is_compiled_for_once(model, images):
    if reason := RUNTIMES["compiled"].missing():
        pytest.skip(reason)
    torch.compiler.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    fast = dwsep_zoo.optimise(
        model, runtime="compiled", input_size=SIZE, min_run_time=0.01, batch_size=2
    )
    with torch.no_grad():
        want = model(images)
    with torch.inference_mode():
        of_inference = images.clone()
    for batch in (images, images.clone().requires_grad_(), images.contiguous(), of_inference):
        assert torch.allclose(fast(batch), want, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
