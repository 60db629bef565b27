"""Every runtime gives what the network gives."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from dwsep_zoo import UserError, create_model
from dwsep_zoo.analysis.latency import measure_latency
from dwsep_zoo.analysis.runtimes import (
    RUNTIMES,
    Workload,
    available_runtimes,
    onnx_call,
    prepare,
    random_input,
)
from dwsep_zoo.nn.blocks import SqueezeExcite
from tests.helpers import calibrate

pytestmark = pytest.mark.bounds


def blocks():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False),
        SqueezeExcite(16, 8, nn.ReLU, nn.Hardsigmoid),
        nn.Conv2d(16, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def runnable(runtime, precision="fp32"):
    try:
        Workload(runtime, precision).check()
    except UserError as error:
        pytest.skip(str(error))


CASES = [
    pytest.param(
        name, precision, marks=[pytest.mark.slow] if name in ("compiled", "frozen") else []
    )
    for name, runtime in RUNTIMES.items()
    for precision in runtime.precisions
]


def compare_outputs(model, x, runtime, precision):
    with torch.inference_mode():
        want = model(x).float().numpy()
        run = prepare(model, x.shape[1:], Workload(runtime, precision, len(x)))
        gc.collect()
        [torch.full_like(x, torch.nan) for _ in range(100)]  # in what was given free
        got = torch.as_tensor(run()).float().numpy()
    return want, got


@pytest.mark.parametrize(("runtime", "precision"), CASES)
def test_outputs_are_those_of_the_network(runtime, precision):
    runnable(runtime, precision)
    x = random_input(2, (3, 16, 16))
    model = calibrate(blocks(), x)
    want, got = compare_outputs(model, x, runtime, precision)
    assert np.abs(want).max() > 0.05
    tolerance = {"fp32": 1e-4, "bf16": 0.03}[precision]
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)
    if precision == "bf16":
        assert np.abs(got - want).max() > 1e-5  # it is not fp32 under another name


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["fused", "compiled", "frozen", "onnxruntime", "openvino"])
@pytest.mark.parametrize("conv", ["standard", "depthwise_separable", "mixed"])
@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "xception"])
def test_whole_networks(name, conv, runtime):
    runnable(runtime)
    x = random_input(2, (3, 64, 64))
    model = create_model(name, conv=conv, width_mult=0.25, num_classes=10)
    model = calibrate(model, x)
    nn.init.normal_(model.get_classifier().weight)
    want, got = compare_outputs(model, x, runtime, "fp32")
    scale = np.abs(want).max()
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_more_networks_than_torch_compiles_of_one_piece_of_code():
    """Beyond 8, torch.compile goes on without compiling, unless told otherwise."""
    runnable("compiled")
    torch._dynamo.reset()
    models = [nn.Sequential(nn.Conv2d(4, n, 1), nn.ReLU()) for n in range(1, 11)]
    runs = [prepare(model, (4, 4, 4), Workload("compiled")) for model in models]
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode():
        for n, run in enumerate(runs, start=1):
            assert run().shape == (1, n, 4, 4)
    assert not torch._dynamo.utils.counters["stats"]  # nothing was compiled anew
    assert not torch._dynamo.utils.counters["unimplemented"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_latency_says_what_it_was_measured_with(runtime):
    runnable(runtime)
    latency = measure_latency(blocks(), (3, 16, 16), runtime=runtime, threads=1, min_run_time=0.01)
    assert (latency.runtime, latency.memory_format) == (runtime, "own layout")
    assert latency.p50_ms > 0


def test_what_is_absent_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert available_runtimes() == {
        "eager": None,
        "fused": None,
        "compiled": "apt-get install g++",
        "frozen": "apt-get install g++",
        "onnxruntime": 'pip install "dwsep-zoo[runtimes]"',
        "openvino": 'pip install "dwsep-zoo[runtimes]"',
    }
    with pytest.raises(UserError, match=r'not installed; install it with: pip install "dwsep-zoo'):
        measure_latency(blocks(), (3, 16, 16), runtime="openvino")


def test_onnxruntime_has_no_bf16():
    runnable("onnxruntime")
    with pytest.raises(UserError, match="'onnxruntime' computes in fp32; got bf16"):
        Workload("onnxruntime", "bf16").check()


def test_large_products_of_int8_do_not_saturate():
    """On x86 without VNNI, ONNX Runtime adds two of them in 16 bits by default."""
    runnable("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    weight = np.full((8, 64, 1, 1), 127, np.int8)
    weight[:, ::3] = -127
    constants = {
        "scale": np.float32(1),
        "coarse": np.float32(2**14),
        "zero": np.uint8(0),
        "middle": np.int8(0),
        "weight": weight,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["levels"]),
        helper.make_node(
            "QLinearConv",
            ["levels", "scale", "zero", "weight", "scale", "middle", "coarse", "zero"],
            ["sums"],
        ),
        helper.make_node("DequantizeLinear", ["sums", "coarse", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 4, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = torch.full((1, 64, 4, 4), 250.0)
    got = onnx_call(model.SerializeToString(), threads=1)(x)
    exact = 250.0 * int(weight[0].astype(int).sum())
    assert (got - exact).abs().max() <= 2**13


def test_a_signal_after_openvino():
    """Two of its plugins in a process can leave a signal stack behind that is unmapped."""
    runnable("openvino")
    code = """
import os, signal, torch
from dwsep_zoo.analysis.runtimes import Workload, prepare
work = Workload("openvino")
first = prepare(torch.nn.Conv2d(3, 8, 3), (3, 8, 8), work)
second = prepare(torch.nn.Conv2d(3, 8, 3), (3, 8, 8), work)
del first
del second
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
