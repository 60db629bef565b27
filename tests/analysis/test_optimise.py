"""The fastest runtime, with the same outputs."""

import pytest
import torch
from helpers import calibrate
from torch import nn

import dwsep_zoo
from dwsep_zoo import UserError, create_model
from dwsep_zoo.analysis import optimise as module
from dwsep_zoo.analysis.runtimes import RUNTIMES, Runtime, check_conditions
from dwsep_zoo.nn.fuse import fold_norms

SIZE = (3, 32, 32)


@pytest.fixture
def images():
    return torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(images):
    torch.manual_seed(0)
    model = create_model("mobilenet_v1", width_mult=0.25, num_classes=5, output_stride=8)
    calibrate(model, torch.randn(16, *SIZE))
    nn.init.normal_(model.get_classifier().weight, std=0.1)
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
        check_conditions(runtime=name)
    except UserError as error:
        pytest.skip(str(error))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = dwsep_zoo.optimise(model, name, input_size=SIZE, min_run_time=0.01)
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
    assert "a compiler" in fast.left_out["compiled"]
    with torch.no_grad():
        assert torch.allclose(fast(images), model(images), atol=1e-4)


def test_a_runtime_that_computes_something_else_is_not_believed(model, no_compiler, monkeypatch):
    def wrong(network, x, precision, threads):
        fold_norms(network, x.shape[1:])
        return lambda images: network(images) * 1.01

    monkeypatch.setitem(RUNTIMES, "fused", Runtime(wrong))
    fast = dwsep_zoo.optimise(model, input_size=SIZE, min_run_time=0.01)
    assert fast.runtime != "fused"
    assert "differ from PyTorch's by 1.0%" in fast.left_out["fused"]
    with pytest.raises(UserError, match="fused: its outputs differ"):
        dwsep_zoo.optimise(model, "fused", input_size=SIZE)


def test_bf16_is_what_it_says(model, images):
    fast = dwsep_zoo.optimise(model, "eager", input_size=SIZE, precision="bf16", min_run_time=0.01)
    with torch.no_grad():
        want = model(images)
    difference = (fast(images) - want).abs().max() / want.abs().max()
    assert 1e-4 < difference < 2 * module.AGREEMENT["bf16"]
    assert fast(images).dtype is torch.float32


def test_bad_input(model):
    with pytest.raises(UserError, match="did you mean 'openvino'"):
        dwsep_zoo.optimise(model, "openvin")
    with pytest.raises(UserError, match="input_size"):
        dwsep_zoo.optimise(nn.Linear(1, 1))
