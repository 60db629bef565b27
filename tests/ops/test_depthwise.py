"""The operator against ``F.conv2d`` in float64, in value and in both gradients."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import pairwise
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from dwsep_zoo.ops import cpu, depthwise_conv2d, fallbacks, plain_kernels
from dwsep_zoo.ops.cpu import slow_input_grad, slow_weight_grad, tiles_are_slower

pytestmark = pytest.mark.bounds

CASES = [
    (kernel_size, stride, size, multiplier, kernel_size // 2)
    for kernel_size in (1, 3, 5, 7)
    for stride in (1, 2)
    for size, multiplier in (((9, 12), 1), ((8, 7), 2), ((1, 1), 1), ((2, 3), 1), ((3, 2), 2))
]
# As after padding that is not the same on all sides: TensorFlow's.
CASES += [
    (kernel_size, stride, size, 1, 0)
    for kernel_size in (3, 5, 7)
    for stride in (1, 2)
    for size in ((13, 10), (kernel_size + 1, kernel_size), (kernel_size, kernel_size + 3))
]


@pytest.fixture(autouse=True)
def nothing_counted():
    fallbacks.clear()


@pytest.mark.parametrize(("kernel_size", "stride", "size", "multiplier", "padding"), CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_equals_conv2d(kernel_size, stride, size, multiplier, padding, layout, dtype, tolerance):
    generator = torch.Generator().manual_seed(kernel_size)
    chans = 10
    x = torch.randn(2, chans, *size, generator=generator).to(dtype)
    x = x.to(memory_format=layout).requires_grad_()
    weight = torch.randn(chans * multiplier, 1, kernel_size, kernel_size, generator=generator)
    weight = weight.to(dtype).requires_grad_()

    y = depthwise_conv2d(x, weight, stride, padding)
    grad = torch.randn(y.shape, generator=generator).to(dtype)
    got = torch.autograd.grad(y, (x, weight), grad)

    x64, w64 = (t.detach().double().requires_grad_() for t in (x, weight))
    y64 = F.conv2d(x64, w64, None, stride, padding, 1, chans)
    want = torch.autograd.grad(y64, (x64, w64), grad.double())

    for ours, oracle in zip((y, *got), (y64, *want), strict=True):
        assert ours.dtype is dtype
        error = (ours.double() - oracle).abs().max() / oracle.abs().max()
        assert error < tolerance


@pytest.mark.parametrize("num_bytes", [1, 3 * 4 * 9 * 9 * 4])
@pytest.mark.parametrize(("kernel_size", "stride"), [(5, 1), (5, 2), (7, 1)])
def test_few_images_at_a_time(kernel_size, stride, num_bytes, monkeypatch):
    """One by one, and in threes, of which the last has fewer."""
    monkeypatch.setattr(cpu, "CACHED_BYTES", num_bytes)
    x, weight = torch.randn(7, 4, 9, 9), torch.randn(4, 1, kernel_size, kernel_size)
    args = (stride, kernel_size // 2)
    grad = torch.randn(7, 4, *[(9 - 1) // stride + 1] * 2)
    got = cpu.weight_grad(grad, x, weight, *args)
    mask = (False, True)
    double = (grad.double(), x.double(), weight.double())
    want = cpu.aten_backward(*double, stride, (args[1],) * 2, mask)[1]
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


def test_the_rule_takes_the_detour_where_onednn_is_slow():
    assert slow_input_grad(torch.bfloat16, 2)
    assert not slow_input_grad(torch.bfloat16, 1)
    assert not slow_input_grad(torch.float32, 2)
    for dtype in (torch.float32, torch.bfloat16):
        assert slow_weight_grad(dtype, 14, 5, 1)
        assert not slow_weight_grad(dtype, 3, 3, 1)
        assert slow_weight_grad(dtype, 2, 3, 1)
        assert not slow_weight_grad(dtype, 4, 3, 2)
        assert slow_weight_grad(dtype, 3, 3, 2)
        assert not slow_weight_grad(dtype, 1, 1, 1)
    for dtype in (torch.float32, torch.bfloat16):
        assert slow_weight_grad(dtype, 14, 7, 2)
        assert not tiles_are_slower(dtype, 7, 1)
        assert not tiles_are_slower(dtype, 5, 2)
    assert not tiles_are_slower(torch.bfloat16, 7, 2)
    assert tiles_are_slower(torch.float32, 7, 2)


def gradients(x, weight, *args):
    return torch.autograd.grad(depthwise_conv2d(x, weight, *args).square().sum(), (x, weight))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_slow_gradient_with_no_way_around_is_pytorchs_and_counted(compiled):
    x, weight = torch.randn(2, 4, 14, 14), torch.randn(4, 1, 7, 7)
    x.requires_grad_()
    weight.requires_grad_()
    with plain_kernels():
        want = gradients(x, weight, 2, 3)
    assert not fallbacks  # it was asked for
    convolve = depthwise_conv2d
    if compiled:
        convolve = torch.compile(depthwise_conv2d, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(convolve(x, weight, 2, 3).square().sum(), (x, weight))
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)
    assert fallbacks == {"weight gradient on the CPU: 7 x 7, stride 2, torch.float32": 1}
    gradients(x, weight, 1, 3)
    assert sum(fallbacks.values()) == 1


def test_devices_without_fast_ways_are_counted(monkeypatch):
    monkeypatch.setattr(F, "conv2d", lambda *args: "PyTorch's")
    for _ in range(2):
        x = SimpleNamespace(device=torch.device("mps"), shape=(1, 4, 9, 9))
        assert depthwise_conv2d(x, None, 1, 1) == "PyTorch's"
    assert fallbacks == {"device mps": 2}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (5, 1), (5, 2), (7, 2)])
def test_no_images(kernel_size, stride, dtype, layout):
    x = torch.empty(0, 4, 9, 9, dtype=dtype).to(memory_format=layout).requires_grad_()
    weight = torch.randn(4, 1, kernel_size, kernel_size, dtype=dtype, requires_grad=True)
    depthwise_conv2d(x, weight, stride, kernel_size // 2).sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert not fallbacks


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (5, 1)])
def test_autocast_gives_bfloat16_and_float32_gradients(kernel_size, stride):
    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    weight = torch.randn(8, 1, kernel_size, kernel_size, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x, weight, stride, kernel_size // 2)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype is torch.float32
    assert weight.grad.dtype is torch.float32


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (5, 1), (5, 2)])
def test_only_the_gradient_that_is_needed(kernel_size, stride):
    x = torch.randn(2, 8, 8, 8)
    weight = torch.randn(8, 1, kernel_size, kernel_size, requires_grad=True)
    depthwise_conv2d(x, weight, stride, kernel_size // 2).sum().backward()
    assert weight.grad is not None


@pytest.fixture
def detours(monkeypatch):
    """All of them in float64 too, so that numerical derivatives can be taken."""
    monkeypatch.setattr(cpu, "slow_input_grad", lambda dtype, stride: stride > 1)
    monkeypatch.setattr(cpu, "slow_weight_grad", lambda *shape: True)
    monkeypatch.setattr(cpu, "tiles_are_slower", lambda *shape: False)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padded"), pairwise([3, 5, 7], [1, 2], [True, False])
)
def test_first_and_second_derivatives(detours, kernel_size, stride, padded):
    x = torch.randn(1, 2, 8, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, kernel_size, kernel_size, dtype=torch.float64, requires_grad=True)
    arguments = (stride, kernel_size // 2 if padded else 0)
    assert "dwsep" in type(depthwise_conv2d(x, weight, *arguments).grad_fn).__name__
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda a, b: depthwise_conv2d(a, b, *arguments), (x, weight))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_second_derivatives_of_one_gradient(detours, needs):
    """The norm of a gradient, as in a penalty, where the other one is not asked for."""
    x = torch.randn(2, 2, 8, 7, dtype=torch.float64)
    weight = torch.randn(2, 1, 5, 5, dtype=torch.float64)

    def penalty(x, weight):
        inputs = [t.clone().requires_grad_(n) for t, n in zip((x, weight), needs, strict=True)]
        wanted = [t for t in inputs if t.requires_grad]
        y = depthwise_conv2d(*inputs, 2, 2).sin().sum()
        (gradient,) = torch.autograd.grad(y, wanted, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), wanted)

    got = penalty(x, weight)
    with plain_kernels():
        want = penalty(x, weight)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "layout", "dtype"),
    [
        (3, 2, torch.contiguous_format, torch.float32),
        (5, 1, torch.channels_last, torch.float32),
        (3, 2, torch.channels_last, torch.bfloat16),
        pytest.param(5, 1, torch.contiguous_format, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_torch_finds_nothing_wrong_with_the_operators(kernel_size, stride, layout, dtype):
    """Schema, fake kernel (shapes, types and strides), autograd, and tracing by the compiler."""
    x = torch.randn(2, 8, 9, 8).to(dtype).to(memory_format=layout)
    weight = torch.randn(8, 1, kernel_size, kernel_size).to(dtype)
    padding = kernel_size // 2
    grad = torch.randn_like(F.conv2d(x, weight, None, stride, padding, 1, 8))
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    opcheck(torch.ops.dwsep.depthwise_conv2d.default, (*leaves, stride, padding))
    for mask in ([True, True], [True, False], [False, True]):
        for inputs in ((grad, x, weight), (grad.clone().requires_grad_(), *leaves)):
            arguments = (*inputs, stride, padding, mask)
            opcheck(torch.ops.dwsep.depthwise_conv2d_backward.default, arguments)


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (5, 1), (7, 2)])
@pytest.mark.parametrize("needs", [(True, True), (False, True), (True, False)])
def test_its_operations_are_counted(kernel_size, stride, needs):
    x = torch.randn(2, 8, 9, 8, requires_grad=needs[0], dtype=torch.bfloat16)
    weight = torch.randn(8, 1, kernel_size, kernel_size, dtype=torch.bfloat16)
    weight.requires_grad_(needs[1])
    with FlopCounterMode(display=False) as counter:
        y = depthwise_conv2d(x, weight, stride, kernel_size // 2)
        forward = counter.get_total_flops()
        y.sum().backward()
    assert forward == 2 * y.numel() * kernel_size**2
    # Each gradient takes as many as the forward pass. (PyTorch's own count of a grouped weight
    # gradient takes it for a dense one.)
    assert counter.get_total_flops() == forward * (1 + sum(needs))


class Depthwise(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 1, 5, 5))

    def forward(self, x):
        return depthwise_conv2d(x, self.weight, 2, 2)


def test_plain_kernels_are_those_of_torch():
    x, weight = torch.randn(2, 4, 9, 9), torch.randn(4, 1, 5, 5, requires_grad=True)
    names = []
    for plain in (False, True, False):
        with plain_kernels() if plain else nullcontext():
            names.append(type(depthwise_conv2d(x, weight, 1, 2).grad_fn).__name__)
    assert names[1] == "ConvolutionBackward0"
    assert names[0] == names[2] != names[1]


def targets(graph):
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


def test_opaque_to_the_compiler_and_transparent_to_export():
    model, x = Depthwise(), torch.randn(2, 8, 9, 8)
    seen = []

    def backend(module, inputs):
        seen.append(targets(module.graph))
        return module.forward

    torch.compile(model, backend=backend, fullgraph=True)(x)
    (compiled,) = seen
    assert any("dwsep.depthwise_conv2d" in name for name in compiled)
    exported = targets(torch.export.export(model, (x,)).graph)
    assert exported == {"aten.conv2d.default"}


def test_with_a_bias():
    x = torch.randn(2, 8, 9, 8, requires_grad=True)
    weight, bias = torch.randn(8, 1, 5, 5), torch.randn(8)
    want = F.conv2d(x, weight, bias, 1, 2, 1, 8)
    assert torch.allclose(depthwise_conv2d(x, weight, 1, 2, bias), want, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(depthwise_conv2d(x, weight, 1, 2, bias), want)
