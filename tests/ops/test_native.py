"""Our own CPU kernels against PyTorch's in float64, and what happens where they cannot be had."""

import platform
import re
import subprocess
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import pairwise
from torch import nn
from torch.library import opcheck

from dwsep_zoo.ops import Depthwise, Fusion, Norm, cpu, depthwise_conv2d, fused, native
from dwsep_zoo.ops.norm import ACTS, update_running

TYPES = [(torch.float32, 2e-5), (torch.bfloat16, 1e-2)]
# A short vector, one, overlapping ones, blocks of 64, 32 and 16.
CHANS = [8, 12, 16, 24, 40, 72, 100, 136]
compiled = pytest.mark.skipif(native.native().library is None, reason=native.native().why)
QUICK = {native.LANES, native.LANES[-1:]}  # others take half a minute to compile
WIDTHS = [
    pytest.param(lanes, marks=() if lanes in QUICK else pytest.mark.slow, id=f"width{lanes[0]}")
    for lanes in [(16, 8), (8,), (4,)]
]


@pytest.fixture(params=WIDTHS)
def any_width(request, monkeypatch):
    """Vectors as long as those of other processors, which compute the same."""
    monkeypatch.setattr(native, "LANES", request.param)


def image_like(*shape, dtype, seed=0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).to(memory_format=torch.channels_last)


def error(ours, exact):
    return float((ours.double() - exact).detach().abs().max() / exact.detach().abs().max())


@compiled
@pytest.mark.usefixtures("any_width")
@pytest.mark.parametrize(("of_type", "act", "chans"), pairwise(TYPES, [*ACTS], CHANS))
def test_norm_and_activation(of_type, act, chans):
    """With a mean that is large beside the deviation, as sums of squares do not like it."""
    dtype, tolerance = of_type
    x = (image_like(5, chans, 9, 7, dtype=torch.float32) * 3 + 20).to(dtype).requires_grad_()
    grad = image_like(5, chans, 9, 7, dtype=dtype, seed=1)
    weight = torch.linspace(-1, 2, chans, requires_grad=True)
    bias = torch.linspace(2, -3, chans, requires_grad=True)

    y, [(mean, var, *_)] = fused(x, Fusion(Norm(weight, bias, 1e-3, act)))
    got = (y, mean, var, *torch.autograd.grad(y, (x, weight, bias), grad))

    leaves = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    exact = ACTS[act](F.batch_norm(leaves[0], None, None, *leaves[1:], True, 0, 1e-3))
    x64 = leaves[0].detach()
    moments = x64.mean((0, 2, 3)), x64.var((0, 2, 3), unbiased=False)
    want = (exact, *moments, *torch.autograd.grad(exact, leaves, grad.double()))
    assert y.dtype is dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert [error(ours, theirs) < tolerance for ours, theirs in zip(got, want, strict=True)] == (
        [True] * 6
    )


@compiled
def test_a_first_pixel_far_from_the_others():
    """Squares are summed around it; those of the rest have to be what remains."""
    x = image_like(64, 16, 40, 41, dtype=torch.float32) + 1000
    x[0, :, 0, 0] = -4000
    _, [(mean, var, *_)] = fused(x, Fusion(Norm(torch.ones(16), torch.zeros(16), 1e-5)))
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
    want = exact.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(var.double(), want, rtol=1e-5, atol=0)
    assert want.max() < 240  # of the one pixel that is 5000 away


@compiled
@pytest.mark.parametrize("act", ACTS)
def test_activations_at_their_corners_and_far_out(act):
    """The slope is PyTorch's where the activation has a corner, and nothing overflows."""
    points = torch.tensor([-300.0, -90, -6, -3, -1, 0, 1, 3, 6, 90, 300])
    chans, count = 16, len(points)
    # Normalised values that are the points: mean 0, and as scale their deviation.
    x = (points - points.mean())[:, None].repeat(1, chans).view(count, chans, 1, 1)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    deviation = x.detach()[:, 0].std(unbiased=False)
    weight, bias = deviation.repeat(chans), points.mean().repeat(chans)
    bias.requires_grad_()
    y, _ = fused(x, Fusion(Norm(weight, bias, 0.0, act)))
    torch.testing.assert_close(y[:, 0, 0, 0], ACTS[act](points), rtol=1e-4, atol=1e-4)
    slopes = []
    for i in range(count):
        grad = torch.zeros_like(y)
        grad[i] = 1.0
        slopes.append(torch.autograd.grad(y, bias, grad, retain_graph=True)[0][0])
    z = points.clone().requires_grad_()
    (want,) = torch.autograd.grad(ACTS[act](z).sum(), z)
    # The points are reached up to rounding, so that at a corner either side's slope is right.
    corner = torch.isin(points, torch.tensor([-3.0, 0, 3, 6]))
    torch.testing.assert_close(torch.stack(slopes)[~corner], want[~corner], rtol=1e-3, atol=1e-4)


@compiled
@pytest.mark.usefixtures("any_width")
@pytest.mark.parametrize(
    ("of_type", "kernel_size", "stride", "size", "padding"),
    pairwise(
        *(TYPES, native.KERNEL_SIZES, native.STRIDES, [(9, 12), (8, 7), (7, 7), (12, 30)]),
        ["none", "half", "all"],
    ),
)
def test_depthwise_gradients(of_type, kernel_size, stride, size, padding):
    dtype, tolerance = of_type
    pad = {"none": 0, "half": kernel_size // 2, "all": kernel_size - 1}[padding]
    for chans in CHANS:
        x = image_like(3, chans, *size, dtype=dtype)
        weight = torch.randn(chans, 1, kernel_size, kernel_size).to(dtype)
        leaves = [t.double().requires_grad_() for t in (x, weight)]
        exact = F.conv2d(*leaves, None, stride, pad, 1, chans)
        grad = image_like(*exact.shape, dtype=dtype, seed=1)
        assert native.covers_depthwise(x, weight, stride, pad)
        want = torch.autograd.grad(exact, leaves, grad.double())
        got = native.depthwise_backward(grad, x, weight, stride, pad, need_x=True)
        assert [error(a, b) < tolerance for a, b in zip(got, want, strict=True)] == [True, True]
        nothing, alone = native.depthwise_backward(grad, x, weight, stride, pad, need_x=False)
        assert nothing is None
        assert torch.equal(alone, got[1])


@compiled
@pytest.mark.usefixtures("any_width")
@pytest.mark.parametrize(
    ("of_type", "act", "stride", "padding"), pairwise(TYPES, [*ACTS], native.STRIDES, [0, 1, 2])
)
def test_norm_activation_and_depthwise_convolution(of_type, act, stride, padding):
    dtype, tolerance = of_type
    for chans in (*CHANS, 264):  # the last has two blocks of channels, the second one longer
        x = (image_like(5, chans, 9, 12, dtype=torch.float32) * 3 + 5).to(dtype).requires_grad_()
        weight = torch.linspace(-1, 2, chans, requires_grad=True)
        bias = torch.linspace(2, -3, chans, requires_grad=True)
        taps = torch.randn(chans, 1, 3, 3).to(dtype).float().requires_grad_()
        leaves = x, weight, bias, taps
        fusion = Fusion(Norm(weight, bias, 1e-3, act), Depthwise(taps, stride, padding))
        assert native.covers_fusion(x, fusion)
        y, [(mean, var, *_)] = fused(x, fusion)
        grad = image_like(*y.shape, dtype=dtype, seed=1)
        got = (y, mean, var, *torch.autograd.grad(y, leaves, grad))

        x64, *rest, taps64 = (t.detach().double().requires_grad_() for t in leaves)
        z = ACTS[act](F.batch_norm(x64, None, None, *rest, True, 0, 1e-3))
        exact = F.conv2d(z, taps64, None, stride, padding, 1, chans)
        found = torch.autograd.grad(exact, (x64, *rest, taps64), grad.double())
        moments = x64.mean((0, 2, 3)), x64.var((0, 2, 3), unbiased=False)
        assert y.dtype is dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        errors = [error(a, b) for a, b in zip(got, (exact, *moments, *found), strict=True)]
        assert [e < tolerance for e in errors] == [True] * 7, errors


@compiled
@pytest.mark.usefixtures("any_width")
@pytest.mark.parametrize(
    ("of_type", "act", "stride", "padding"), pairwise(TYPES, [*ACTS], native.STRIDES, [0, 1, 2])
)
def test_activation_and_depthwise_convolution(of_type, act, stride, padding):
    dtype, tolerance = of_type
    for chans in (*CHANS, 264):
        x = image_like(5, chans, 9, 12, dtype=dtype).mul_(4).requires_grad_()
        taps = torch.randn(chans, 1, 3, 3).to(dtype).float().requires_grad_()
        fusion = Fusion(Norm(act=act), Depthwise(taps, stride, padding))
        assert native.covers_fusion(x, fusion)
        y, nothing = fused(x, fusion)
        assert nothing == []
        grad = image_like(*y.shape, dtype=dtype, seed=1)
        got = (y, *torch.autograd.grad(y, (x, taps), grad))
        leaves = [t.detach().double().requires_grad_() for t in (x, taps)]
        exact = F.conv2d(ACTS[act](leaves[0]), leaves[1], None, stride, padding, 1, chans)
        want = (exact, *torch.autograd.grad(exact, leaves, grad.double()))
        assert y.dtype is dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        errors = [error(a, b) for a, b in zip(got, want, strict=True)]
        assert [e < tolerance for e in errors] == [True] * 3, errors


def both_norms(x, taps, norm, norm2, act, act2, stride, padding):
    """Layer by layer."""
    y = ACTS[act](F.batch_norm(x, None, None, *norm, True, 0, 1e-3))
    y = F.conv2d(y, taps, None, stride, padding, 1, x.shape[1])
    return y, ACTS[act2](F.batch_norm(y, None, None, *norm2, True, 0, 1e-5))


def in_two_operations(x, taps, norm, norm2, act, act2, stride, padding):
    y, [stats] = fused(x, Fusion(Norm(*norm, 1e-3, act), Depthwise(taps, stride, padding)))
    z, [stats2] = fused(y, Fusion(Norm(*norm2, 1e-5, act2)))
    return z, *stats[:2], *stats2[:2]


@compiled
@pytest.mark.usefixtures("any_width")
@pytest.mark.parametrize(
    ("of_type", "acts", "window", "images"),
    pairwise(
        [(torch.float32, 5e-5), (torch.bfloat16, 1e-2)],
        [*zip(ACTS, reversed([*ACTS]), strict=True), ("relu", "relu6")],
        [(1, 1), (2, 1), (1, 0), (2, 2)],  # stride and padding
        [20, 70],  # a piece has one image, or three
    ),
)
def test_another_norm_and_activation_behind_the_convolution(of_type, acts, window, images):
    (dtype, tolerance), (stride, padding) = of_type, window
    for chans in (8, 40, 136, 264) if images == 20 else (12, 24):
        x = (image_like(images, chans, 7, 6, dtype=torch.float32) * 3 + 5).to(dtype)
        # Of both signs, but not near 0: what then varies by less than it is rounded by is no image.
        sign = 1 - 2 * (torch.arange(chans) % 2)
        norm, norm2 = (
            [torch.linspace(0.5, 2, chans) * sign, torch.linspace(*bias, chans)]
            for bias in ((2, -3), (-1, 3))
        )
        taps = torch.randn(chans, 1, 3, 3).to(dtype).float()
        leaves = [t.requires_grad_() for t in (x, *norm, taps, *norm2)]
        conv = Depthwise(taps, stride, padding)
        fusion = Fusion(Norm(*norm, 1e-3, acts[0]), conv, Norm(*norm2, 1e-5, acts[1]))
        assert native.covers_fusion(x, fusion)
        z, [stats, stats2] = fused(x, fusion)
        grad = image_like(*z.shape, dtype=dtype, seed=1)
        got = (z, *stats[:2], *stats2[:2], *torch.autograd.grad(z, leaves, grad))

        exact = [t.detach().double().requires_grad_() for t in leaves]
        y64, z64 = both_norms(exact[0], exact[3], exact[1:3], exact[4:], *acts, stride, padding)
        moments = [
            of(t.detach(), (0, 2, 3))
            for t in (exact[0], y64)
            for of in (torch.mean, partial(torch.var, unbiased=False))
        ]
        want = (z64, *moments, *torch.autograd.grad(z64, exact, grad.double()))
        assert z.dtype is dtype
        assert z.is_contiguous(memory_format=torch.channels_last)
        apart = in_two_operations(x, taps, norm, norm2, *acts, stride, padding)
        by_parts = (*apart, *torch.autograd.grad(apart[0], leaves, grad))

        def distance(ours, exact):
            return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())

        # Rounding moves values past corners of the activation, where the slope is another one.
        smooth = dtype is torch.float32 and acts == ("silu", "identity")
        for ours, parts, exactly in zip(got, by_parts, want, strict=True):
            if exactly.norm() < 1e-2 * grad.norm():  # a bias that the second norm takes away
                continue
            allowed = 0 if smooth else 2 * distance(parts, exactly)
            assert distance(ours, exactly) < max(tolerance, allowed)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filters_in_another_layout_or_type(dtype):
    taps = torch.randn(3, 3, 24, 1, dtype=dtype).permute(2, 3, 0, 1)
    x, one, zero = image_like(2, 24, 5, 5, dtype=torch.float32), torch.ones(24), torch.zeros(24)
    y, _ = fused(x, Fusion(Norm(one, zero, 1e-3, "relu"), Depthwise(taps, 1, 1)))
    want, _ = both_norms(x, taps.float(), (one, zero), (one, zero), "relu", "relu", 1, 1)
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
    grad = image_like(*y.shape, dtype=torch.float32, seed=1)
    _, of_taps = native.depthwise_backward(grad, x, taps, 1, 1, need_x=False)
    assert of_taps.stride() == torch.empty_like(taps).stride()


@compiled
@pytest.mark.parametrize("images", [3, 33])
def test_moments_behind_a_convolution_whose_mean_is_large(images):
    """Around the mean of the first row, whatever the first pixel is."""
    x = image_like(images, 16, 20, 21, dtype=torch.float32)
    x[0, :, 0, 0] = 400
    taps = torch.full((16, 1, 3, 3), 1.0)
    norm, norm2 = ((torch.ones(16), torch.full((16,), value)) for value in (100.0, 0.0))
    fusion = Fusion(Norm(*norm, 1e-3, "relu"), Depthwise(taps, 1, 0), Norm(*norm2, 1e-5))
    _, [_, (mean, var, *_)] = fused(x, fusion)
    y, _ = both_norms(
        x.double(), taps.double(), *[[t.double() for t in n] for n in (norm, norm2)],
        "relu", "identity", 1, 0,
    )  # fmt: skip
    torch.testing.assert_close(mean.double(), y.mean((0, 2, 3)), rtol=1e-6, atol=0)
    want = y.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(var.double(), want, rtol=1e-4, atol=0)
    assert (mean > 100 * want.sqrt()).all()


@compiled
@pytest.mark.usefixtures("any_width")
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("stride", native.STRIDES)
def test_norm_and_convolution_of_images_smaller_than_the_kernel(stride, size):
    x, taps = image_like(4, 24, *size, dtype=torch.float32), torch.randn(24, 1, 3, 3)
    leaves = [t.requires_grad_() for t in (x, torch.rand(24), torch.rand(24), taps)]
    norm = leaves[1:3]
    fusion = Fusion(Norm(*norm, 1e-3, "silu"), Depthwise(taps, stride, 1))
    y, _ = fused(x, fusion)
    two, _ = fused(x, fusion._replace(norm2=Norm(*norm, 1e-5, "relu6")))
    want, of_both = both_norms(x, taps, norm, norm, "silu", "relu6", stride, 1)
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two, of_both, rtol=1e-4, atol=1e-4)
    along = torch.linspace(-1, 1, two.numel()).view_as(two)
    for ours, theirs in zip(
        torch.autograd.grad((y.sin() + two * along).sum(), leaves),
        torch.autograd.grad((want.sin() + of_both * along).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_nothing(dtype):
    x = image_like(37, 24, 9, 9, dtype=dtype)
    grad = image_like(37, 24, 9, 9, dtype=dtype, seed=1)
    weight, ones, zeros = torch.randn(24, 1, 3, 3), torch.ones(24), torch.zeros(24)
    results = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append([*native.depthwise_backward(grad, x, weight, 1, 1, need_x=True)])
            norm, conv = Norm(ones, zeros, 1e-5, "silu"), Depthwise(weight, 1, 1)
            for fusion in (Fusion(norm), Fusion(norm, conv), Fusion(norm, conv, norm)):
                y, stats, kept = native.forward(x, fusion)
                grads = native.backward(grad, x, fusion, *stats, *kept)
                results[-1] += [y, *stats, *kept, *grads]
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert torch.equal(one, same)


@compiled
def test_what_is_not_covered():
    x = image_like(2, 16, 8, 8, dtype=torch.float32)
    assert native.covers(x)
    assert not native.covers(x.double())
    assert not native.covers(x.half())
    assert not native.covers(x.contiguous())
    assert not native.covers(x[:, :8])
    assert not native.covers(x[:0])
    assert not native.covers(x[..., ::2])
    weight = torch.randn(16, 1, 3, 3)
    assert native.covers_depthwise(x, weight, 1, 1)
    assert not native.covers_depthwise(x, weight, 3, 1)
    assert not native.covers_depthwise(x, weight, 1, 3)
    assert not native.covers_depthwise(x, torch.randn(32, 1, 3, 3), 1, 1)
    assert not native.covers_depthwise(x, torch.randn(16, 1, 9, 9), 1, 4)
    assert not native.covers_depthwise(x[:, :, :2], weight, 1, 0)  # no output
    norm, conv = Norm(torch.ones(16), torch.zeros(16)), Depthwise(weight, 1, 1)
    assert native.covers_fusion(x, Fusion(norm, conv))
    assert native.covers_fusion(x, Fusion(norm, conv, norm))
    assert native.covers_fusion(x, Fusion(Norm(act="relu"), conv))
    assert not native.covers_fusion(x, Fusion(Norm(act="relu"), conv, norm))
    assert not native.covers_fusion(x[:1], Fusion(norm, conv, norm))  # PyTorch refuses it by name
    assert not native.covers_fusion(x, Fusion(norm, Depthwise(torch.randn(16, 1, 5, 5), 1, 2)))
    assert not native.covers_fusion(x, Fusion(norm, conv, expand=torch.randn(16, 16, 1, 1)))


@compiled
@pytest.mark.parametrize("stride", [1, 2])
def test_the_operator_takes_them(stride, monkeypatch):
    calls = []
    ours = native.depthwise_backward
    monkeypatch.setattr(native, "depthwise_backward", lambda *a: calls.append(1) or ours(*a))
    x = image_like(2, 16, 8, 8, dtype=torch.float32).requires_grad_()
    weight = torch.randn(16, 1, 3, 3, requires_grad=True)
    got = torch.autograd.grad(depthwise_conv2d(x, weight, stride, 1).square().sum(), (x, weight))
    want = torch.autograd.grad(
        F.conv2d(x, weight, None, stride, 1, 1, 16).square().sum(), (x, weight)
    )
    assert calls == [1]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@compiled
@pytest.mark.parametrize("act", ACTS)
def test_second_derivatives_are_pytorchs(act):
    """The norm of a gradient, as in a penalty."""
    x = image_like(3, 16, 4, 4, dtype=torch.float32)
    weight, bias = torch.rand(16) + 0.5, torch.rand(16)

    def penalty(way):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        (gradient,) = torch.autograd.grad(way(*leaves).sin().sum(), leaves[:1], create_graph=True)
        grads = torch.autograd.grad(gradient.square().sum(), leaves, allow_unused=True)
        return [grad for grad in grads if grad is not None]

    def plain(a, *b):
        return ACTS[act](F.batch_norm(a, None, None, *b, True, 0, 1e-5))

    got = penalty(lambda a, *b: fused(a, Fusion(Norm(*b, 1e-5, act)))[0])
    torch.testing.assert_close(got, penalty(plain), rtol=1e-3, atol=1e-4)

    taps = torch.rand(16, 1, 3, 3)
    conv = Depthwise(taps, 2, 1)
    got = penalty(lambda a, *b: fused(a, Fusion(Norm(*b, 1e-5, act), conv))[0])
    want = penalty(lambda *inputs: F.conv2d(plain(*inputs), taps, None, 2, 1, 1, 16))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)

    got = penalty(lambda a, *b: fused(a * b[0].view(-1, 1, 1), Fusion(Norm(act=act), conv))[0])
    want = penalty(
        lambda a, *b: F.conv2d(ACTS[act](a * b[0].view(-1, 1, 1)), taps, None, 2, 1, 1, 16)
    )
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)

    norm2, conv = (torch.rand(16) + 0.5, torch.rand(16)), Depthwise(taps, 1, 1)
    got = penalty(
        lambda a, *b: fused(a, Fusion(Norm(*b, 1e-3, act), conv, Norm(*norm2, 1e-5, act)))[0]
    )
    want = penalty(lambda a, *norm: both_norms(a, taps, norm, norm2, act, act, 1, 1)[1])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.fixture
def quick_source(anew, monkeypatch, tmp_path):
    """A source with the functions' names alone, which compiles at once."""
    names = re.findall(r"^void (dwsep_\w+)\(", native.SOURCE.read_text(), re.MULTILINE)
    source = tmp_path / "native.cpp"
    source.write_text("".join(f'extern "C" void {name}() {{}}\n' for name in names))
    monkeypatch.setattr(native, "SOURCE", source)


@pytest.fixture
def anew():
    """As in a process that has not looked for a compiler."""
    native.native.cache_clear()
    yield
    native.native.cache_clear()


@pytest.mark.skipif(platform.system() != "Linux", reason="looked for on Linux only")
def test_without_a_compiler(anew, monkeypatch):
    monkeypatch.setattr(native, "_compiler", lambda: None)
    x, weight = image_like(2, 16, 8, 8, dtype=torch.float32), torch.randn(16, 1, 3, 3)
    assert not native.covers(x)
    assert native.status() == (
        "PyTorch's (no C++ compiler; install g++, or name one in the variable CXX)"
    )
    grad = torch.randn_like(x)
    for ours, theirs in zip(
        cpu.backward(grad, x, weight, 1, 1, (True, True)),
        cpu.aten_backward(grad, x, weight, 1, (1, 1), (True, True)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(platform.system() != "Linux", reason="looked for on Linux only")
def test_a_compiler_that_fails_is_named(anew, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo 1.0 && exit\necho broken >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert native.status() == f"PyTorch's ({compiler} failed: broken)"
    assert [path.name for path in (tmp_path / "dwsep_zoo").iterdir()] == []


@compiled
def test_compiled_once_and_also_where_no_cache_can_be_written(quick_source, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert native.native().library
    folder = tmp_path / "cache" / "dwsep_zoo"
    (library,) = folder.iterdir()
    commands = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: commands.append(a[0]) or run(*a, **k))
    native.native.cache_clear()
    assert native.native().library
    assert [command[-1] for command in commands] == ["--version"]
    library.unlink()
    folder.rmdir()
    folder.write_text("not a folder")
    native.native.cache_clear()
    assert native.native().library


@compiled
def test_a_damaged_library_is_compiled_again(quick_source, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    native.native()
    (whole,) = (tmp_path / "one" / "dwsep_zoo").iterdir()
    damaged = tmp_path / "other" / "dwsep_zoo" / whole.name
    damaged.parent.mkdir(parents=True)
    damaged.write_text("no library")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    native.native.cache_clear()
    assert native.native().library
    assert damaged.stat().st_size == whole.stat().st_size


@compiled
def test_the_compiler_may_have_arguments(quick_source, monkeypatch):
    words = native._compiler()
    monkeypatch.setenv("CXX", f"env LANG=C {words[0]}")
    assert native._compiler() == ["env", "LANG=C", words[0]]
    native.native.cache_clear()
    assert native.native().library
    monkeypatch.delenv("CXX")
    words = native._compiler()
    monkeypatch.setenv("CXX", "g++ 'no end")
    assert native._compiler() == words


@pytest.mark.skipif(platform.system() != "Linux", reason="looked for on Linux only")
def test_a_compiler_with_another_openmp_is_refused(anew, monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho Debian clang version 14\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert native.status() == (
        "PyTorch's (not by Debian clang version 14; install g++, or name one in the variable CXX)"
    )


@compiled
@pytest.mark.parametrize(
    ("dtype", "kernel_size", "stride"),
    [
        *((torch.float32, 3, 1), (torch.bfloat16, 3, 2), (torch.float32, 5, 1)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((torch.bfloat16, 3, 1), (torch.float32, 3, 2), (torch.bfloat16, 5, 1))
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_compiler_is_told_what_they_return(dtype, kernel_size, stride):
    """Shapes, types and strides; and it does not look into how the library came about."""
    x = image_like(2, 16, 9, 8, dtype=dtype)
    weight = torch.randn(16, 1, kernel_size, kernel_size)
    padding = kernel_size // 2
    grad = torch.randn_like(F.conv2d(x, weight.to(dtype), None, stride, padding, 1, 16))
    arguments = (grad, x, weight, stride, padding, [True, True])
    opcheck(torch.ops.dwsep.depthwise_conv2d_backward.default, arguments)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    convolve = torch.compile(depthwise_conv2d, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(convolve(*leaves, stride, padding), leaves, grad)
    want = torch.autograd.grad(depthwise_conv2d(*leaves, stride, padding), leaves, grad)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)


@compiled
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("stride", native.STRIDES)
@pytest.mark.parametrize("kernel_size", native.KERNEL_SIZES)
def test_images_smaller_than_the_kernel(kernel_size, stride, size):
    x, weight = (
        image_like(1, 24, *size, dtype=torch.float32),
        torch.randn(24, 1, *[kernel_size] * 2),
    )
    leaves = [t.double().requires_grad_() for t in (x, weight)]
    exact = F.conv2d(*leaves, None, stride, kernel_size // 2, 1, 24)
    grad = image_like(*exact.shape, dtype=torch.float32, seed=1)
    want = torch.autograd.grad(exact, leaves, grad.double())
    got = native.depthwise_backward(grad, x, weight, stride, kernel_size // 2, need_x=True)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@compiled
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9])
def test_running_statistics_are_those_of_the_module(momentum):
    norm, x = nn.BatchNorm2d(20, momentum=momentum), image_like(3, 20, 4, 5, dtype=torch.float32)
    own = [t.clone() for t in (norm.running_mean, norm.running_var, norm.num_batches_tracked)]
    for _ in range(2):
        norm(x)
        _, [stats] = fused(x, Fusion(Norm(norm.weight, norm.bias, norm.eps)))
        update_running(stats, *own, momentum, 3 * 4 * 5)
        update_running(stats, own[0].clone(), own[1].clone(), None, momentum, 3 * 4 * 5)
    for ours, theirs in zip(own, norm.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
