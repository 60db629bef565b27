"""Muon against its definition by singular values, and against SGD where it is SGD."""

import pytest
import torch
from helpers import recipe
from torch import nn

from dwsep_zoo import create_model
from dwsep_zoo.nn import CONVS, is_depthwise
from dwsep_zoo.training import muon
from dwsep_zoo.training.muon import COEFFICIENTS, STEPS, Muon, batches, orthogonalise
from dwsep_zoo.training.optim import create_optimizer, parameter_groups


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def one_by_one(matrix, dtype=torch.bfloat16):
    """The reference: a matrix by itself."""
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype)
    x = x / (x.norm() + 1e-7)
    if wide := x.shape[0] < x.shape[1]:
        x = x.T
    for _ in range(STEPS):
        gram = x.T @ x
        x = a * x + x @ (b * gram + c * gram @ gram)
    return (x.T if wide else x).to(matrix.dtype)


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32), (1, 8)])
def test_all_directions_become_about_as_long(shape, generator):
    u, _, v = torch.linalg.svd(torch.randn(*shape, generator=generator), full_matrices=False)
    lengths = torch.linspace(1.0, 5.0, min(shape))
    (got,) = orthogonalise([7 * u @ lengths.diag() @ v])
    assert got.shape == shape
    assert got.dtype is torch.float32
    along = u.T @ got @ v.T  # the directions stay what they are
    assert (along.diag() > 0.3).all()
    assert (along.diag() < 1.35).all()
    assert (along - along.diag().diag()).abs().max() < 0.05


SHAPES = [(24, 8), (8, 24), (24, 8), (16, 16), (20, 7), (3, 5), (1, 9), (9, 1), (40, 40)]


@pytest.mark.parametrize("free", [0, 1e9], ids=["equal shapes", "padded"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
def test_together_they_are_what_they_are_alone(generator, monkeypatch, free, dtype, tolerance):
    monkeypatch.setitem(muon.FREE, "cpu", free)
    matrices = [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
    rate = torch.tensor(0.5)
    for matrix, got in zip(
        matrices, orthogonalise(matrices, dtype=dtype, length=rate), strict=True
    ):
        torch.testing.assert_close(got, 0.5 * one_by_one(matrix, dtype), rtol=0, atol=tolerance)


def test_zeros_are_multiplied_where_that_is_cheaper_than_one_more_batch():
    shapes = ((64, 32), (64, 64), (64, 32), (128, 16), (64, 64))

    def cost(rows, cols):
        return STEPS * (2 * rows * cols**2 + cols**3)

    extra = 2 * (cost(64, 64) - cost(64, 32))
    apart = [((64, 64), [1, 4]), ((64, 32), [0, 2]), ((128, 16), [3])]
    assert batches(shapes, extra) == apart
    assert batches(shapes, extra + 1) == [((64, 64), [1, 4, 0, 2]), ((128, 16), [3])]


def test_no_gradient_no_direction():
    assert torch.equal(orthogonalise([torch.zeros(4, 6)])[0], torch.zeros(4, 6))


def weights(generator):
    return [torch.randn(8, 4, 1, 1, generator=generator), torch.randn(5, generator=generator)]


def train(make, initial, generator, steps=4):
    params = [nn.Parameter(p.clone()) for p in initial]
    optimizer = make(params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return params, optimizer


def test_other_groups_are_sgds(generator):
    group = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}
    initial = weights(generator)
    ours, _ = train(lambda p: Muon([{"params": p, **group}]), initial, generator.manual_seed(1))
    theirs, _ = train(
        lambda p: torch.optim.SGD(p, **group, nesterov=True), initial, generator.manual_seed(1)
    )
    torch.testing.assert_close(ours, theirs)


def test_the_step_of_a_matrix(generator):
    """Its length is set, and Nesterov's direction is orthogonalised."""
    group = {"lr": 0.1, "momentum": 0.6, "orthogonal": True}
    weight, _ = weights(generator)
    (got,), _ = train(
        lambda p: Muon([{"params": p, **group}]), [weight], generator.manual_seed(1), steps=2
    )
    generator.manual_seed(1)
    momentum = torch.zeros(8, 4)
    want = weight.flatten(1)
    for _ in range(2):
        grad = torch.randn(weight.shape, generator=generator).flatten(1)
        momentum = 0.6 * momentum + grad
        want = want * 8**0.5 / want.norm() - 0.1 * one_by_one(grad + 0.6 * momentum)
    torch.testing.assert_close(got.flatten(1), want, rtol=0, atol=0.005)  # bfloat16, times 0.1


def test_its_state_goes_on_where_it_was(generator):
    group = {"lr": 0.1, "momentum": 0.6, "orthogonal": True}
    initial = weights(generator)[:1]
    whole, _ = train(lambda p: Muon([{"params": p, **group}]), initial, generator.manual_seed(1))
    half, before = train(
        lambda p: Muon([{"params": p, **group}]), initial, generator.manual_seed(1), steps=2
    )

    def again(params):
        optimizer = Muon([{"params": params, **group}])
        optimizer.load_state_dict(before.state_dict())
        return optimizer

    both, _ = train(again, half, generator, steps=2)
    assert torch.equal(both[0], whole[0])


@pytest.mark.parametrize("orthogonal", [True, False])
def test_a_rate_may_be_a_tensor(generator, orthogonal):
    initial, ends = weights(generator), []
    for rate in (0.1, torch.tensor(0.1)):
        group = {"lr": rate, "momentum": 0.6, "orthogonal": orthogonal}
        ends.append(
            train(
                lambda p, group=group: Muon([{"params": p[:1], **group}]),
                initial[:1],
                generator.manual_seed(1),
            )[0]
        )
    assert torch.equal(ends[0][0], ends[1][0])


def test_a_matrix_of_zeros_gets_its_step(generator):
    group = {"lr": 0.1, "momentum": 0.6, "orthogonal": True}
    (got,), _ = train(
        lambda p: Muon([{"params": p, **group}]), [torch.zeros(8, 4, 3, 3)], generator
    )
    assert got.isfinite().all()
    assert got.count_nonzero() == got.numel()


def test_a_parameter_without_a_gradient_stays():
    weight = nn.Parameter(torch.ones(4, 4, 1, 1))
    Muon([{"params": [weight], "lr": 1.0, "momentum": 0.6, "orthogonal": True}]).step()
    assert torch.equal(weight, torch.ones(4, 4, 1, 1))


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small", "xception"])
def test_which_weights_are_matrices(name, conv):
    """Those of dense convolutions behind the stem that a norm follows: all without a bias."""
    model = create_model(name, width_mult=0.25, conv=conv)
    groups = {g["name"]: g for g in parameter_groups(model, 0.5, orthogonal=True)}
    found = {id(p) for p in groups["orthogonal"]["params"]}
    assert groups["orthogonal"]["weight_decay"] == 0
    others = {id(p) for g in groups.values() for p in g["params"]} - found
    assert found | others == {id(p) for p in model.parameters()}
    stem = {id(p) for p in model.stem.parameters()}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            dense = isinstance(module, nn.Conv2d) and module.groups == 1 and module.bias is None
            assert (id(p) in found) == (dense and id(p) not in stem)
            assert not (is_depthwise(module) and id(p) in found)


def test_the_rates_of_both_kinds():
    model = create_model("mobilenet_v1", width_mult=0.25)
    groups = parameter_groups(model, 0.5, layer_decay=0.5, orthogonal=True)
    rates = {"lr": 2.0, "momentum": 0.9, "muon_lr": 0.1, "muon_momentum": 0.6}
    optimizer = create_optimizer(recipe(optimizer="muon", **rates), groups)
    assert isinstance(optimizer, Muon)
    for group in optimizer.param_groups:
        rate, momentum = (0.1, 0.6) if group["orthogonal"] else (2.0, 0.9)
        assert group["lr"] == rate * group["lr_scale"]
        assert group["momentum"] == momentum
    assert {g["orthogonal"] for g in optimizer.param_groups} == {True, False}


def test_without_other_wishes_there_is_one_rate():
    groups = parameter_groups(create_model("mobilenet_v2", width_mult=0.25), 0.5)
    assert {g["lr_scale"] for g in groups} == {1.0}
