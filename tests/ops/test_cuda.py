"""The choice among kernels on a GPU, without one: ways and clock are the test's."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from dwsep_zoo.ops import cuda


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(cuda, "choices", {})
    monkeypatch.setattr(cuda, "fallbacks", cuda.Counter())


def ways(*names):
    return {name: lambda name=name: name for name in names}


def test_the_fastest_is_timed_once_and_kept():
    calls = []

    def clock(way):
        calls.append(way())
        return {cuda.OWN: 3.0, "native": 2.0, "triton": 1.0}[way()]

    for _ in range(3):
        assert cuda.fastest(("a",), ways(cuda.OWN, "native", "triton"), clock) == "triton"
    assert len(calls) == 3 * cuda.TRIALS
    assert cuda.choices == {("a",): "triton"}
    assert cuda.fastest(("b",), ways(cuda.OWN, "native"), clock) == "native"


def test_a_single_way_is_not_timed():
    assert cuda.fastest(("a",), ways(cuda.OWN), clock=None) == cuda.OWN
    assert not cuda.choices


def test_nothing_is_timed_in_a_capture_or_where_results_may_not_depend_on_a_clock(monkeypatch):
    both = ways(cuda.OWN, "triton")
    monkeypatch.setattr(cuda, "_is_capturing", lambda: True)
    assert cuda.fastest(("a",), both) == cuda.OWN
    monkeypatch.setattr(cuda, "_is_capturing", lambda: False)
    torch.use_deterministic_algorithms(True)
    try:
        assert cuda.fastest(("a",), both) == cuda.OWN
    finally:
        torch.use_deterministic_algorithms(False)
    assert not cuda.choices
    assert cuda.fastest(("a",), both, clock=lambda way: way() == cuda.OWN) == "triton"


# Triton's interpreter is chosen as its kernels are imported: in a process of its own.
PROGRAM = """
import torch, torch.nn.functional as F
from dwsep_zoo.ops import cuda

def slow_is_ours(way):
    return 0.0 if "triton" in way.func.__name__ else 1.0

cuda._cuda_clock = slow_is_ours
torch.manual_seed(0)
for size, stride in ((3, 1), (5, 2)):
    x = torch.randn(1, 8, 6, 7).to(memory_format=torch.channels_last)
    w = torch.randn(8, 1, size, size)
    x64, w64 = (t.double().requires_grad_() for t in (x, w))
    y64 = F.conv2d(x64, w64, None, stride, size // 2, 1, 8)
    g = torch.randn_like(y64).float()
    want = torch.autograd.grad(y64, (x64, w64), g.double())
    y = cuda.forward(x, w, stride, size // 2)
    got = cuda.backward(g, x, w, stride, size // 2, (True, True))
    for ours, oracle in zip((y, *got), (y64, *want)):
        assert (ours - oracle).abs().max() < 1e-5, (size, stride)
assert set(cuda.choices.values()) == {"triton"}, cuda.choices
x = torch.randn(1, 8, 6, 7)
assert torch.equal(cuda.forward(x, torch.ones(8, 1, 9, 9), 1, 4),
                   F.conv2d(x, torch.ones(8, 1, 9, 9), None, 1, 4, 1, 8))
assert sum(cuda.fallbacks.values()) == 1, cuda.fallbacks
"""


def test_our_kernels_take_part_and_what_they_do_not_cover_is_counted():
    pytest.importorskip("triton", minversion="3.9")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_on_a_gpu(size, stride):
    from dwsep_zoo.ops import depthwise_conv2d

    x = torch.randn(4, 32, 14, 15, device="cuda").to(memory_format=torch.channels_last)
    w = torch.randn(32, 1, size, size, device="cuda", requires_grad=True)
    x.requires_grad_()
    y = depthwise_conv2d(x, w, stride, size // 2)
    x64, w64 = (t.detach().double().requires_grad_() for t in (x, w))
    y64 = torch.nn.functional.conv2d(x64, w64, None, stride, size // 2, 1, 32)
    g = torch.randn_like(y)
    got, want = torch.autograd.grad(y, (x, w), g), torch.autograd.grad(y64, (x64, w64), g.double())
    for ours, oracle in zip((y, *got), (y64, *want), strict=True):
        assert (ours - oracle).abs().max() < 1e-2 * oracle.abs().max()
