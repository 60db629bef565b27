"""The operator against ``F.conv2d`` in float64, in value and in both gradients."""

import pytest
import torch
import torch.nn.functional as F

from dwsep_zoo.ops import depthwise_conv2d
from dwsep_zoo.ops.depthwise import slow_input_grad, slow_weight_grad

CASES = [
    (kernel_size, stride, size, multiplier)
    for kernel_size in (1, 3, 5, 7)
    for stride in (1, 2)
    for size, multiplier in (((9, 12), 1), ((8, 7), 2))
]


@pytest.mark.parametrize(("kernel_size", "stride", "size", "multiplier"), CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_equals_conv2d(kernel_size, stride, size, multiplier, layout, dtype, tolerance):
    generator = torch.Generator().manual_seed(kernel_size)
    chans = 10
    x = torch.randn(2, chans, *size, generator=generator).to(dtype)
    x = x.to(memory_format=layout).requires_grad_()
    weight = torch.randn(chans * multiplier, 1, kernel_size, kernel_size, generator=generator)
    weight = weight.to(dtype).requires_grad_()
    padding = kernel_size // 2

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


def test_the_rule_takes_the_detour_where_onednn_is_slow():
    assert slow_input_grad(torch.bfloat16, 2)
    assert not slow_input_grad(torch.bfloat16, 1)
    assert not slow_input_grad(torch.float32, 2)
    assert slow_weight_grad(5)
    assert not slow_weight_grad(3)


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


@pytest.mark.parametrize(("kernel_size", "stride"), [(5, 1), (7, 2)])
def test_gradcheck(kernel_size, stride):
    x = torch.randn(1, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, kernel_size, kernel_size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: depthwise_conv2d(a, b, stride, kernel_size // 2), (x, weight)
    )
