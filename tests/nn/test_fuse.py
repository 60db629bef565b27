"""Norms folded into convolutions."""

import copy

import pytest
import torch
from helpers import calibrate, model_conv_pairs
from torch.nn.modules.batchnorm import _BatchNorm

from dwsep_zoo import count, create_model
from dwsep_zoo.nn.fuse import fold_norms

SIZE = (3, 96, 96)


def trained(name, conv, x):
    """As far as norms go: statistics of ``x``, and weights and biases of their own."""
    torch.manual_seed(0)
    model = create_model(name, conv=conv, width_mult=0.5, num_classes=7)
    calibrate(model, x)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            torch.nn.init.uniform_(norm.weight, 0.8, 1.2)
            torch.nn.init.uniform_(norm.bias, -0.2, 0.2)
    return model


@pytest.mark.parametrize(("name", "conv"), model_conv_pairs(costly=True))
def test_a_fused_network_computes_the_same_without_norms(name, conv):
    x = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(0))
    model = trained(name, conv, x)
    macs = count(model, SIZE).macs
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        before = model(x)
        assert model.train().fuse() is model
        after = model(x)
        rounded = copy.deepcopy(model).double()(x.double())
        exactly_fused = trained(name, conv, x).double().fuse()(x.double())
    assert not model.training
    assert not any(isinstance(module, _BatchNorm) for module in model.modules())
    assert count(model, SIZE).macs == macs
    largest = exact.abs().max()
    assert largest > 0.01
    assert (exactly_fused - exact).abs().max() < 1e-10 * largest
    # The rounding of the fused weights to float32 moves the outputs little; that of the kernels,
    # which differs between processors, is no larger than in the network before.
    assert (rounded - exact).abs().max() <= 1e-5 * largest
    assert (after - rounded).abs().max() <= 4 * (before - exact).abs().max()


def test_a_second_time_there_is_nothing_to_fold():
    model = create_model("mobilenet_v2", width_mult=0.5).fuse()
    state = copy.deepcopy(model.state_dict())
    assert fold_norms(model, SIZE) == []
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
