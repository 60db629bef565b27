"""The Triton kernels of norms against PyTorch in float64: in Triton's interpreter, and on a GPU
where there is one (``-m gpu``).
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import pairwise
from torch import nn

from dwsep_zoo.ops import (
    Depthwise,
    Fusion,
    Norm,
    native,
    triton_common,
    triton_expand,
    triton_norm,
)
from dwsep_zoo.ops.norm import ACTS

EPS = 1e-3
SHAPES = [(2, 17, 3, 5), (3, 40, 7, 2), (1, 1, 3, 4), (2, 136, 2, 3)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request):
    if request.param == "cuda":
        return triton_norm
    return request.getfixturevalue("interpreted").triton_norm


@pytest.fixture
def device(kernels):
    return "cuda" if kernels is triton_norm else "cpu"


@pytest.fixture
def expansion(kernels, request):
    if kernels is triton_norm:
        return triton_expand
    return request.getfixturevalue("interpreted").triton_expand


def draw(shape, device, dtype=torch.float32, mean=1.0):
    x = (torch.randn(shape, device=device) + mean).to(dtype)
    weight, bias = 2 * torch.randn(2, shape[1], device=device)
    return x.to(memory_format=torch.channels_last), weight, bias


def oracle(x, weight, bias, act, taps=None, stride=1, padding=1):
    """The output and a function of its gradient, which gives those of all inputs, in float64."""
    inputs = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = ACTS[act](F.batch_norm(inputs[0], None, None, *inputs[1:], True, 0.0, EPS))
    if taps is not None:
        inputs.append(taps.double().requires_grad_())
        y = F.conv2d(y, inputs[-1], None, stride, padding, 1, x.shape[1])
    return y, lambda grad: torch.autograd.grad(y, inputs, grad.double())


def assert_near(ours, exact, times=2.0):
    eps = torch.finfo(ours.dtype).eps if ours.dtype is not torch.float32 else 2e-5
    bound = times * eps * (exact.abs() + exact.abs().max()) + 1e-12
    worst = ((ours.double() - exact).abs() / bound).max().item()
    assert worst <= 1, f"{worst:.2f} times the bound"


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_and_activation(kernels, device, shape, act):
    x, weight, bias = draw(shape, device)
    fusion = Fusion(Norm(weight, bias, EPS, act))
    assert kernels.covers_fusion(x, fusion)
    y, [stats], _ = kernels.forward(x, fusion)
    want, differentiate = oracle(x, weight, bias, act)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_near(y, want)
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert_near(stats[0], mean)
    assert_near(stats[1], var)
    grad = torch.randn_like(y)
    ours = kernels.backward(grad, x, fusion, stats)
    for got, exact in zip(ours, differentiate(grad), strict=True):
        assert_near(got, exact)


@pytest.mark.parametrize(
    ("act", "size", "stride"), pairwise(["identity", "relu6", "silu"], [3, 5], [1, 2])
)
def test_a_depthwise_convolution_behind_them(kernels, device, size, stride, act):
    x, weight, bias = draw((2, 19, 5, 7), device)
    taps = torch.randn(19, 1, size, size, device=device)
    shape = (stride, size // 2)
    fusion = Fusion(Norm(weight, bias, EPS, act), Depthwise(taps, *shape))
    assert kernels.covers_fusion(x, fusion)
    y, [stats], _ = kernels.forward(x, fusion)
    want, differentiate = oracle(x, weight, bias, act, taps, *shape)
    assert_near(y, want)
    grad = torch.randn_like(y)
    ours = kernels.backward(grad, x, fusion, stats)
    for got, exact in zip(ours, differentiate(grad), strict=True):
        assert_near(got, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kernels, device, dtype):
    x, weight, bias = draw((2, 24, 4, 5), device, dtype)
    taps = torch.randn(24, 1, 3, 3, device=device)
    for more in ((), (taps,)):
        conv = Depthwise(taps, 1, 1) if more else None
        fusion = Fusion(Norm(weight, bias, EPS, "silu"), conv)
        y, [stats], _ = kernels.forward(x, fusion)
        want, differentiate = oracle(x, weight, bias, "silu", *more)
        assert y.dtype is dtype
        assert_near(y, want)
        grad = torch.randn_like(y)
        ours = kernels.backward(grad, x, fusion, stats)
        for got, exact in zip(ours, differentiate(grad), strict=True):
            assert_near(got, exact)


def test_a_large_mean_costs_no_digits(kernels, device):
    x, weight, bias = draw((4, 16, 6, 6), device, mean=1000.0)
    _, [stats], _ = kernels.forward(x, Fusion(Norm(weight, bias, EPS)))
    var = x.double().var((0, 2, 3), correction=0)
    assert_near(stats[1], var, times=10)


def test_many_programs_and_many_rows_each(kernels, device, monkeypatch):
    x, weight, bias = draw((2, 17, 16, 31), device)
    want, differentiate = oracle(x, weight, bias, "relu")
    grad = torch.randn_like(x)
    exact_grads = differentiate(grad)
    fusion = Fusion(Norm(weight, bias, EPS, "relu"))
    for programs in (1, 3, 1024):
        monkeypatch.setattr(kernels, "PROGRAMS", programs)
        (y, [stats], _), (again, [same], _) = (kernels.forward(x, fusion) for _ in range(2))
        assert torch.equal(y, again)
        assert torch.equal(stats, same)
        assert_near(y, want)
        ours = kernels.backward(grad, x, fusion, stats)
        for got, exact in zip(ours, exact_grads, strict=True):
            assert_near(got, exact)


@pytest.mark.parametrize("tracked", [True, False])
def test_running_statistics(kernels, device, tracked):
    x, weight, bias = draw((3, 21, 4, 4), device)
    norm = nn.BatchNorm2d(21, momentum=0.3).to(device)
    norm(x + 1)  # not the initial ones
    mean, var, number = (b.clone() for b in norm.buffers())
    norm(x)
    _, [stats], _ = kernels.forward(x, Fusion(Norm(weight, bias, EPS, "relu")))
    kernels.update_running(stats, mean, var, number if tracked else None, 0.3, 3 * 16)
    assert_near(mean, norm.running_mean.double())
    assert_near(var, norm.running_var.double())
    assert number.item() == 1 + tracked


def test_a_nan_stays_one(kernels, device):
    x, weight, bias = draw((2, 5, 3, 3), device)
    x[0, 2, 1, 1] = torch.nan
    y, [stats], _ = kernels.forward(x, Fusion(Norm(weight, bias, EPS, "relu6")))
    assert y[:, 2].isnan().all()
    assert stats[:, 2].isnan().all()
    assert not y[:, [0, 1, 3, 4]].isnan().any()


def test_what_is_not_covered(kernels, device):
    x, weight, bias = draw((2, 16, 6, 6), device)
    taps = torch.randn(16, 1, 3, 3, device=device)
    norm, conv = Norm(weight, bias, EPS), Depthwise(taps, 2, 1)
    assert kernels.covers(x)
    for other in (x.double(), x.contiguous(), x[:0], x[..., ::2], x[0]):
        assert not kernels.covers(other)
    assert kernels.covers_fusion(x, Fusion(norm, conv))
    assert not kernels.covers_fusion(x, Fusion(norm, Depthwise(torch.randn(16, 1, 7, 7), 1, 3)))
    assert not kernels.covers_fusion(x, Fusion(norm, conv._replace(stride=3)))
    assert not kernels.covers_fusion(x.double(), Fusion(norm, conv))
    assert not kernels.covers_fusion(x, Fusion(norm, conv, norm))
    assert not kernels.covers_fusion(x, Fusion(norm._replace(synced=True), conv))
    assert not kernels.covers_fusion(x, Fusion(Norm(act="relu"), conv))


def test_activations_are_those_of_the_processor():
    assert (*ACTS,) == native.ACTIVATIONS
    assert (*ACTS,) == triton_common.ACTIVATIONS


def of_four_layers(x, expand, weight, bias, taps, act, stride, padding):
    """Output, and a function of its gradient, in float64."""
    inputs = [t.double().requires_grad_() for t in (x, expand, weight, bias, taps)]
    e = F.conv2d(inputs[0], inputs[1])
    z = ACTS[act](F.batch_norm(e, None, None, *inputs[2:4], True, 0.0, EPS))
    y = F.conv2d(z, inputs[4], None, stride, padding, 1, len(taps))
    return e, y, lambda grad: torch.autograd.grad(y, inputs, grad.double())


def in_order(grads):
    """The gradients as :func:`of_four_layers` has them."""
    of_x, of_weight, of_bias, of_taps, *nothing, of_expand = grads
    assert nothing == [None, None]
    return of_x, of_expand, of_weight, of_bias, of_taps


@pytest.mark.parametrize(
    ("narrow", "wide", "size", "stride", "act"),
    [
        (16, 96, 3, 1, "relu6"),
        (5, 17, 3, 2, "silu"),
        pytest.param(24, 72, 5, 1, "identity", marks=pytest.mark.slow),
        pytest.param(70, 210, 5, 2, "relu", marks=pytest.mark.slow),
    ],
)
def test_an_expansion_in_front_of_them(expansion, device, narrow, wide, size, stride, act):
    x, _, _ = draw((2, narrow, 6, 7), device)
    expand = torch.randn(wide, narrow, 1, 1, device=device) / narrow**0.5
    weight, bias = 2 * torch.randn(2, wide, device=device)
    taps = torch.randn(wide, 1, size, size, device=device)
    shape = (stride, size // 2)
    fusion = Fusion(Norm(weight, bias, EPS, act), Depthwise(taps, *shape), expand=expand)
    y, [stats], kept = expansion.forward(x, fusion)
    e, want, differentiate = of_four_layers(x, expand, weight, bias, taps, act, *shape)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_near(y, want)
    assert_near(stats[0], e.mean((0, 2, 3)))
    assert_near(stats[1], e.var((0, 2, 3), correction=0))
    grad = torch.randn_like(y)
    ours = in_order(expansion.backward(grad, x, fusion, stats, *kept))
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    for got, exact, like in zip(
        ours, differentiate(grad), (x, expand, weight, bias, taps), strict=True
    ):
        assert got.shape == like.shape
        assert_near(got, exact, times=4)


def test_an_expansion_in_half_precision_is_as_exact_as_layer_by_layer(expansion, device):
    torch.manual_seed(1)
    x, _, _ = draw((4, 24, 8, 8), device, torch.bfloat16)
    expand = (torch.randn(48, 24, 1, 1, device=device) / 5).bfloat16()
    weight, bias = 1 + 0.2 * torch.randn(2, 48, device=device)
    taps = torch.randn(48, 1, 3, 3, device=device) / 3
    _, want, differentiate = of_four_layers(x, expand, weight, bias, taps, "relu6", 1, 1)
    grad = torch.randn_like(want).bfloat16()
    exact = [want, *differentiate(grad)]

    leaves = [t.clone().requires_grad_() for t in (x, expand, weight, bias, taps)]
    z = F.relu6(F.batch_norm(F.conv2d(*leaves[:2]), None, None, *leaves[2:4], True, 0.0, EPS))
    y = F.conv2d(z, leaves[4].bfloat16(), None, 1, 1, 1, 48)
    layer_by_layer = [y, *torch.autograd.grad(y, leaves, grad)]

    fusion = Fusion(Norm(weight, bias, EPS, "relu6"), Depthwise(taps, 1, 1), expand=expand)
    y, stats, kept = expansion.forward(x, fusion)
    ours = [y, *in_order(expansion.backward(grad, x, fusion, *stats, *kept))]
    for a, b, truth in zip(ours, layer_by_layer, exact, strict=True):
        errors = [((t.double() - truth).norm() / truth.norm()).item() for t in (a, b)]
        assert errors[0] <= 1.2 * errors[1], errors


def test_which_expansions_are_covered(expansion, device):
    x, _, _ = draw((2, 16, 6, 6), device, torch.bfloat16)
    expand, taps = torch.randn(48, 16, 1, 1, device=device), torch.randn(48, 1, 3, 3, device=device)
    norm, conv = Norm(*torch.ones(2, 48, device=device), EPS), Depthwise(taps, 1, 1)
    large = Depthwise(torch.randn(48, 1, 7, 7, device=device), 1, 3)
    fusion = Fusion(norm, conv, expand=expand)
    assert expansion.covers_fusion(x, fusion)
    narrower = Fusion(norm, conv._replace(taps=taps[:32]), expand=expand[:32])
    assert not expansion.covers_fusion(x, narrower)
    assert not expansion.covers_fusion(x, fusion._replace(conv=conv._replace(stride=3)))
    assert not expansion.covers_fusion(x, fusion._replace(conv=large))
    assert not expansion.covers_fusion(x.float(), fusion)
    assert not expansion.covers_fusion(x, fusion._replace(conv=None))
    assert not expansion.covers_fusion(x, fusion._replace(norm=Norm()))
    several = fusion.norm._replace(synced=True)
    assert not expansion.covers_fusion(x, fusion._replace(norm=several))
