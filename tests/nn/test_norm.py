"""Norm and activation at once are what the modules compute one by one."""

import copy

import pytest
import torch
from torch import nn

from dwsep_zoo.nn.layers import ACTS
from dwsep_zoo.nn.norm import NormAct, Normed, norm_act
from dwsep_zoo.ops import native, plain_kernels
from dwsep_zoo.ops.norm import ACTS as FUNCTIONS

pytestmark = pytest.mark.skipif(native.native().library is None, reason=native.native().why)


@pytest.fixture
def calls(monkeypatch):
    """With which activations the kernel was called."""
    found = []
    ours, names = native.norm_act, [*FUNCTIONS]
    monkeypatch.setattr(
        native, "norm_act", lambda *args: found.append(names[args[-1]]) or ours(*args)
    )
    return found


def example(chans=24, requires_grad=True):
    x = torch.randn(4, chans, 5, 6).to(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(chans, momentum=0.3)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    return x.requires_grad_(requires_grad), norm


@pytest.mark.parametrize("act", [None, *ACTS])
def test_equals_the_modules(act, calls):
    x, norm = example()
    module = ACTS[act]() if act else None
    other = copy.deepcopy(norm)
    for _ in range(2):  # the second time, the running statistics are not the initial ones
        got = norm_act(x, norm, module)
        with plain_kernels():
            want = norm_act(x, other, module)
        for ours, theirs in zip(
            torch.autograd.grad(got.square().sum(), [x, *norm.parameters()]),
            torch.autograd.grad(want.square().sum(), [x, *other.parameters()]),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got, want)
    for (name, ours), theirs in zip(norm.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert calls == [act or "identity"] * 2


def hooked(norm, act):
    act.register_forward_hook(lambda *_: None)


def many_small_things():
    x, norm = example()
    return {
        "in evaluation": (x, norm.eval()),
        "another layout": (x.detach().contiguous().requires_grad_(), example()[1]),
        "float64": (x.detach().double().requires_grad_(), example()[1].double()),
        "few channels": example(chans=8),
        "another norm": (x, nn.InstanceNorm2d(24)),
        "no statistics": (x, nn.BatchNorm2d(24, track_running_stats=False)),
        "a mean of all": (x, nn.BatchNorm2d(24, momentum=None)),
        "no weights": (x, nn.BatchNorm2d(24, affine=False)),
    }


@pytest.mark.parametrize("case", many_small_things())
def test_everything_else_is_left_to_the_modules(case, calls):
    x, norm = many_small_things()[case]
    act = nn.ReLU()
    got = norm_act(x, norm, act)
    assert calls == []
    torch.testing.assert_close(got, act(copy.deepcopy(norm)(x)))


def test_an_activation_that_it_does_not_know(calls):
    x, norm = example()
    norm_act(x, norm, nn.GELU())
    assert calls == []


@pytest.mark.parametrize("listened", ["0", "1"])
def test_modules_that_somebody_listens_to_are_called(listened, calls):
    x, norm = example()
    both = NormAct(norm, nn.ReLU())
    heard = []
    handle = both.get_submodule(listened).register_forward_hook(lambda *args: heard.append(1))
    both(x)
    assert (heard, calls) == ([1], [])
    handle.remove()
    both(x)
    assert (heard, calls) == ([1], ["relu"])


def test_no_gradients_no_kernel(calls):
    x, norm = example(requires_grad=False)
    with torch.no_grad():
        norm_act(x, norm)
    assert calls == []


def test_the_modules_before_the_norm_are_called_in_order(calls):
    x, norm = example()
    block = Normed()
    block.act0, block.conv = nn.SiLU(), nn.Conv2d(24, 24, 1)
    block.norm, block.act = norm, nn.ReLU()
    block = block.to(memory_format=torch.channels_last)
    want = nn.Sequential(*block.children())(x)
    torch.testing.assert_close(block(x), want)
    assert calls == ["relu"]


def test_the_compiler_gets_the_modules(calls):
    x, norm = example()
    both = NormAct(norm, nn.ReLU())
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), both(x))
    assert calls == ["relu"]  # by the second one


def test_a_norm_for_other_channels_is_refused_as_ever(calls):
    x, _ = example()
    with pytest.raises(RuntimeError):
        norm_act(x, nn.BatchNorm2d(32))
    assert calls == []


def test_statistics_that_are_not_counted(calls):
    """As in the second computation of gradient checkpointing."""
    x, norm = example()
    norm.momentum, norm.num_batches_tracked = 0.0, None
    before = norm.running_mean.clone()
    norm_act(x, norm)
    assert calls == ["identity"]
    assert torch.equal(norm.running_mean, before)


def test_a_slice_of_a_block_is_a_sequence(calls):
    x, norm = example()
    block = Normed()
    block.conv, block.norm, block.act = nn.Identity(), norm, nn.ReLU()
    assert torch.equal(block[:1](x), x)
