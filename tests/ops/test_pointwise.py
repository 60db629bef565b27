"""Products of matrices are the convolutions they stand for, and means are those of the module."""

import pytest
import torch
import torch.nn.functional as F

from dwsep_zoo.ops import plain_kernels, pointwise, pointwise_conv2d, pool_beside


def operands(pixels=4, dtype=torch.float32):
    x = torch.randn(2, 24, pixels, pixels).to(dtype).to(memory_format=torch.channels_last)
    return x.requires_grad_(), torch.randn(40, 24, 1, 1, requires_grad=True)


def is_a_product(y):
    return "Convolution" not in type(y.grad_fn).__name__


@pytest.mark.parametrize("biased", [False, True])
def test_equals_conv2d(biased):
    x, weight = operands()
    bias = torch.randn(40, requires_grad=True) if biased else None
    leaves = (x, weight, bias) if biased else (x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        y = pointwise_conv2d(*leaves)
    assert is_a_product(y)
    assert y.dtype is torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(y.shape).to(torch.bfloat16)
    got = (y, *torch.autograd.grad(y, leaves, grad))
    exact = F.conv2d(*[leaf.double() for leaf in leaves])
    want = (exact, *torch.autograd.grad(exact, leaves, grad.double()))
    for ours, theirs in zip(got, want, strict=True):
        assert (ours.double() - theirs).abs().max() < 1e-2 * theirs.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_where_the_convolution_is_no_slower_it_is_one(dtype, monkeypatch):
    x, weight = operands(dtype=dtype)
    weight = weight.to(dtype)
    assert is_a_product(pointwise_conv2d(x, weight)) == (dtype is not torch.float64)
    with plain_kernels():
        assert not is_a_product(pointwise_conv2d(x, weight))
    assert not is_a_product(pointwise_conv2d(x.contiguous(), weight))
    monkeypatch.setattr(pointwise, "MAX_PIXELS", {dtype: 31})
    assert not is_a_product(pointwise_conv2d(x, weight))
    monkeypatch.setattr(pointwise, "MAX_PIXELS", {dtype: 32})
    assert is_a_product(pointwise_conv2d(x, weight))


def test_export_sees_a_convolution():
    class Pointwise(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = operands()[1]

        def forward(self, x):
            return pointwise_conv2d(x, self.weight)

    x = operands(dtype=torch.bfloat16)[0]
    graph = torch.export.export(Pointwise().bfloat16(), (x,)).graph
    assert {str(n.target) for n in graph.nodes if n.op == "call_function"} == {
        "aten.conv2d.default"
    }


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_means_beside_the_channels(layout):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    y, means = pool_beside(x)
    assert torch.equal(y, x)
    torch.testing.assert_close(means, x.mean((2, 3), keepdim=True))
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda a: torch.mul(*pool_beside(a)), (x,))
        assert check(lambda a: pool_beside(a)[1], (x,))
        assert check(lambda a: pool_beside(a)[0], (x,))
