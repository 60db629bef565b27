"""An accelerated network is the network, only faster: any network, in any state."""

import copy
import io
import pickle
import random

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from dwsep_zoo import accelerate, create_model
from dwsep_zoo.acceleration import explain, planned_forward
from dwsep_zoo.nn import CONVS, is_depthwise
from dwsep_zoo.ops import native, plain_kernels

pytestmark = pytest.mark.skipif(native.native().library is None, reason=native.native().why)

LARGEST = 10e6  # parameters of a drawn network


def images(count=4, size=32, chans=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, chans, size, size, generator=generator)
    return x.to(memory_format=torch.channels_last)


def results(model, x, seed=2):
    """Output, gradients and buffers of a step."""
    torch.manual_seed(seed)
    x = x.to(next(model.parameters()).dtype).requires_grad_()
    model.zero_grad()
    y = model(x)
    y.sin().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **grads, **dict(model.named_buffers())}


def assert_as_exact(model, plain, x):
    """The accelerated step is as near to float64's as PyTorch's own; both in the same state."""
    exact = results(copy.deepcopy(plain).double(), x)
    own, ours = results(plain, x), results(model, x)
    assert own.keys() == ours.keys()
    largest = max(t.double().norm() for t in exact.values())
    relative = []
    for name, want in exact.items():
        size = want.double().norm()
        errors = [(got[name].double() - want.double()).norm() for got in (ours, own)]
        # An activation at its kink makes single errors large, of either side.
        assert errors[0] <= 10 * errors[1] + 0.1 * size + 1e-6 * largest, name
        relative.append([error / (size + 1e-6 * largest) for error in errors])
    medians = torch.tensor(relative).median(0).values
    assert medians[0] <= 3 * medians[1] + 1e-5


def drawn(seed):
    """The name of a network of timm with at most ten million parameters."""
    names = [n for n in timm.list_models() if timm.model_entrypoint(n).__module__[:5] == "timm."]
    random.Random(seed).shuffle(names)
    for name in names:
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=3)
        except Exception:  # not every network can be made on that device
            continue
        if sum(p.numel() for p in model.parameters()) <= LARGEST:
            return name
    raise AssertionError("there is none")


def check_drawn(name):
    torch.manual_seed(0)
    size = timm.get_pretrained_cfg(name).input_size[-1]
    model = timm.create_model(name, num_classes=3)
    if not timm.get_pretrained_cfg(name).fixed_input_size:
        size = 64
    plain = model.to(memory_format=torch.channels_last).train()
    assert_as_exact(accelerate(copy.deepcopy(plain)), plain, images(2, size))


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(n, marks=pytest.mark.slow) for n in range(6, 100))]
)
def test_networks_of_timm(seed):
    check_drawn(drawn(seed))


NAMED = [
    *("mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "mobilenetv4_conv_small"),
    *("mnasnet_100", "xception41"),
]
NORMS_AND_ACTS = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)


def eligible(model, x):
    """Number of depthwise 3 x 3 convolutions whose input a norm or an activation made for them.

    The first one of a block with a shortcut shares it.
    """
    made, found = {}, []
    shared = {
        next(m for m in block.modules() if isinstance(m, nn.Conv2d))
        for block in model.modules()
        if getattr(block, "has_skip", False)
    }

    def note(module, inputs, output):
        if isinstance(module, nn.Conv2d) and is_depthwise(module) and module.kernel_size == (3, 3):
            found.append(id(inputs[0]) in made and module not in shared)
        if isinstance(module, NORMS_AND_ACTS):
            made[id(output)] = output

    handles = [m.register_forward_hook(note) for m in model.modules() if not [*m.children()][2:]]
    model(x)
    for handle in handles:
        handle.remove()
    return sum(found)


@pytest.mark.parametrize("name", NAMED)
def test_eligible_chains_are_fused(name, monkeypatch):
    convolved = []
    ours = native.forward

    def forward(x, fusion):
        convolved.append(fusion.conv is not None)
        return ours(x, fusion)

    monkeypatch.setattr(native, "forward", forward)
    model = timm.create_model(name).to(memory_format=torch.channels_last).train()
    wanted = eligible(model, images(2, 64))
    accelerate(model)(images(2, 64))
    assert sum(convolved) >= 0.95 * wanted > 0
    notes = explain(model, images(2, 64))
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms <= {name for names in notes.fused for name in names}
    assert len(notes.fused) == len(convolved) / 2


def small(seed=0, **options):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(inplace=True),
        nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.SiLU()
        ),
        nn.Conv2d(16, 24, 1, bias=False),
        nn.BatchNorm2d(24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).to(memory_format=torch.channels_last)


def pair():
    """An accelerated network after its first step, and an equal one as it was."""
    model, plain = accelerate(small()), small()
    for network in (model, plain):
        results(network, images())
    return model, plain


def fused(model):
    return [len(names) for names in explain(model, images()).fused]


def frozen_norm(model):
    model[3][1].eval()


def freeze(model):
    for p in [*model[:4].parameters()]:
        p.requires_grad_(False)


def replace(model):
    torch.manual_seed(5)
    model[4] = nn.Conv2d(16, 24, 3, padding=1).to(memory_format=torch.channels_last)


def replace_depthwise(model):
    torch.manual_seed(5)
    model[3][0] = nn.Conv2d(16, 16, 3, padding=1).to(memory_format=torch.channels_last)


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


def parametrise(model):
    parametrize.register_parametrization(model[3][0], "weight", Twice())


def new_weight(model):
    model[3][0].weight = nn.Parameter(model[3][0].weight.detach() * 3)


def patched(model):
    model[3].forward = lambda x: x


def stride(model):
    model[3][0].stride = (2, 2)


def another_activation(model):
    model[2] = nn.GELU()


CHANGES = {
    "nothing": (lambda model: None, [5, 1]),
    "a norm in evaluation": (frozen_norm, [3, 1]),
    "frozen": (freeze, [1]),
    "another convolution": (replace, [5, 1]),
    "a dense one": (replace_depthwise, [2, 2, 1]),
    "a parametrisation": (parametrise, [2, 2, 1]),
    "another weight": (new_weight, [5, 1]),
    "a replaced forward": (patched, [2, 1]),
    "another stride": (stride, [5, 1]),
    "another activation": (another_activation, [1, 2, 1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_that_is_changed_after_its_first_step(change):
    model, plain = pair()
    change, sizes = CHANGES[change]
    for network in (model, plain):
        change(network)
    assert_as_exact(model, plain, images())
    assert fused(model) == sizes


def test_training_evaluation_training():
    model, plain = pair()
    for mode in (False, True, False, True):
        model.train(mode), plain.train(mode)
        assert_as_exact(model, plain, images())
        with torch.no_grad():
            torch.testing.assert_close(model(images()), plain(images()))
    assert {k: v for k, v in model.state_dict().items() if "num_batches" in k} == {
        k: v for k, v in plain.state_dict().items() if "num_batches" in k
    }


@pytest.mark.parametrize("options", [{"drop_rate": 0.5}, {"drop_path_rate": 0.5}])
def test_random_numbers_are_the_same(options):
    torch.manual_seed(0)
    plain = timm.create_model("mobilenetv2_035", num_classes=3, **options)
    plain.to(memory_format=torch.channels_last).train()
    model = accelerate(copy.deepcopy(plain))
    assert_as_exact(model, plain, images())
    assert torch.equal(*(results(model, images(), seed)["y"] for seed in (3, 3)))
    assert not torch.equal(*(results(model, images(), seed)["y"] for seed in (3, 4)))


HOOKS = ["forward", "forward_pre", "full_backward", "full_backward_pre"]


@pytest.mark.parametrize("where", ["", "3", "3.0", "3.1"])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_called(kind, where):
    model, heard = pair()[0], []
    before = fused(model)
    listened = model.get_submodule(where)
    handle = getattr(listened, f"register_{kind}_hook")(lambda *_: heard.append(1))
    results(model, images())
    assert heard == [1]
    handle.remove()
    results(model, images())
    assert heard == [1]
    assert fused(model) == before


def test_hooks_on_all_modules_are_called():
    model, heard = pair()[0], []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: heard.append(m))
    try:
        results(model, images())
    finally:
        handle.remove()
    assert set(heard) == set(model.modules())


def by_pickle(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, lambda m: AveragedModel(m).module])
def test_copies_are_networks_of_their_own(copied):
    model, plain = pair()
    other = copied(model)
    assert {p.data_ptr() for p in model.parameters()}.isdisjoint(
        p.data_ptr() for p in other.parameters()
    )
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert_as_exact(other, plain, images())
    assert model.state_dict().keys() == other.state_dict().keys() == plain.state_dict().keys()


def test_a_deep_copy_is_accelerated():
    assert fused(copy.deepcopy(pair()[0])) == [5, 1]


def exported(model, x):
    return torch.export.export(model, (x,)).module()


def traced(model, x):
    return torch.jit.trace(model, x, check_trace=False)


def compiled(model, x):
    return torch.compile(model, backend="aot_eager", fullgraph=True)


def functional(model, x):
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    return lambda x: torch.func.functional_call(model, state, (x,))


def vectorised(model, x):
    return lambda x: torch.func.vmap(model, randomness="error")(x[:, None]).squeeze(1)


def symbolic(model, x):
    return torch.fx.symbolic_trace(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("how", [exported, traced, compiled, functional, vectorised, symbolic])
def test_other_ways_to_run_it(how):
    model, plain = pair()
    model.eval(), plain.eval()
    torch.testing.assert_close(how(model, images())(images()), plain(images()))


def test_checkpointing_counts_statistics_once():
    plain = create_model("mobilenet_v2", num_classes=3, width_mult=0.35, output_stride=8)
    plain.to(memory_format=torch.channels_last).set_grad_checkpointing()
    model = accelerate(copy.deepcopy(plain))
    assert_as_exact(model, plain, images())
    assert all(n == 1 for k, n in model.named_buffers() if "num_batches" in k)
    model.set_grad_checkpointing(False), plain.set_grad_checkpointing(False)
    assert_as_exact(model, plain, images())
    assert fused(model)


@pytest.mark.parametrize("conv", CONVS)
def test_every_conv_type(conv):
    plain = create_model("mobilenet_v2", conv=conv, num_classes=3, width_mult=0.35)
    plain.to(memory_format=torch.channels_last).train()
    assert_as_exact(accelerate(copy.deepcopy(plain)), plain, images(4, 64))


def test_a_compiler_gets_this_projects_convolutions():
    plain = create_model("efficientnet_b0", num_classes=3, drop_rate=0.0, drop_path_rate=0.0)
    plain.to(memory_format=torch.channels_last)
    model, seen = accelerate(copy.deepcopy(plain)), []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(planned_forward(model, images()), backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(images()), plain(images()), rtol=1e-3, atol=1e-3)
    assert sum("dwsep" in name for name in seen) == sum(map(is_depthwise, model.modules()))
    for (name, ours), theirs in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)


def test_a_network_of_torchvision():
    torch.manual_seed(0)
    plain = torchvision.models.mobilenet_v3_small(num_classes=3)
    plain.to(memory_format=torch.channels_last).train()
    model = accelerate(copy.deepcopy(plain))
    assert_as_exact(model, plain, images(4, 64))
    assert sum(map(len, explain(model, images(4, 64)).fused)) > 34


class Block(nn.Module):
    """A norm, an activation and a depthwise convolution, called in some way."""

    def __init__(self, chans=16):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, chans, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(chans), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(chans, chans, 3, 1, 1, groups=chans, bias=False)
        self.scale = nn.Parameter(torch.full((chans, 1, 1), 2.0))


class Shared(Block):
    def forward(self, x):
        x = self.conv(self.act(self.norm(self.stem(x))))
        return self.conv(self.act(self.norm(x)))


class InPlaceOnAShortcut(Block):
    def forward(self, x):
        y = self.norm(self.stem(x))
        return self.conv(self.act(y)) + y  # the activation changed y


class InPlaceOnAView(Block):
    def forward(self, x):
        y = self.norm(self.stem(x))
        return self.conv(self.act(y[:, :])) + y


class InPlaceOnTheInput(Block):
    def forward(self, x):
        z = x * 1
        F.relu_(z)
        return self.conv(self.act(self.norm(self.stem(z)))) + z.sum()


class InPlaceBetween(Block):
    def forward(self, x):
        y = self.stem(x)
        z = self.norm(y)
        w = y.clone()
        w += 1
        return self.conv(self.act(z)) + w


class Branches(Block):
    def forward(self, x):
        y = self.stem(x)
        if y.mean() > 100:
            return y
        return self.conv(self.act(self.norm(y)))


class AsksForTensors(Block):
    """Takes another path when it is recorded, without an error."""

    def forward(self, x):
        y = self.stem(x)
        if not isinstance(y, torch.Tensor):
            return y
        return self.conv(self.act(self.norm(y)))


class ReadsAParameter(Block):
    def forward(self, x):
        return self.conv(F.relu(self.norm(self.stem(x)))) * self.scale


class Checkpointed(Block):
    def forward(self, x):
        return checkpoint(lambda y: self.act(self.norm(self.stem(y))), x, use_reentrant=False)


class ManyOutputs(Block):
    def forward(self, x):
        y = self.norm(self.stem(x))
        return self.conv(F.relu(y)) + {"a": [y]}["a"][0]


class SwitchesByMode(Block):
    def forward(self, x):
        y = self.act(self.norm(self.stem(x)))
        return F.dropout(self.conv(y), 0.5, self.training)


class CountsItsSteps(Block):
    steps = 0

    def forward(self, x):
        self.steps += 1
        return self.steps * self.conv(self.act(self.norm(self.stem(x))))


class KeepsAList(Block):
    def __init__(self, chans=16):
        super().__init__(chans)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(x.shape[-1])
        return self.conv(self.act(self.norm(self.stem(x))))


class ManyArguments(Block):
    def forward(self, x, other=None, *, scale=1.0):
        if other is not None:
            x = x + other
        return scale * self.conv(self.act(self.norm(self.stem(x))))


ODD = [
    *(Shared, InPlaceOnAShortcut, InPlaceOnAView, InPlaceOnTheInput, InPlaceBetween, Branches),
    *(AsksForTensors, ReadsAParameter, Checkpointed, ManyOutputs, SwitchesByMode),
    *(CountsItsSteps, KeepsAList, ManyArguments),
]


@pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("chans", [16, 17, 6])
def test_odd_networks(kind, chans):
    plain = kind(chans).to(memory_format=torch.channels_last)
    model = accelerate(copy.deepcopy(plain))
    for _ in range(3):
        ours, own = results(model, images()), results(plain, images())
        # Some gradients are zero but for rounding.
        largest = max(t.double().norm() for t in own.values())
        for name, want in own.items():
            assert (ours[name] - want).double().norm() <= 1e-5 * largest, name
    model.eval(), plain.eval()
    torch.testing.assert_close(results(model, images())["y"], results(plain, images())["y"])


def test_lists_of_the_network_grow_as_before():
    model = accelerate(KeepsAList().to(memory_format=torch.channels_last))
    for _ in range(3):
        results(model, images())
    assert model.sizes == [32] * 3


def test_a_network_that_cannot_be_recorded_says_why(caplog):
    model = accelerate(Branches().to(memory_format=torch.channels_last))
    for _ in range(2):
        results(model, images())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "Branches" in said[0]
    assert explain(model, images()).fused == []


def test_other_arguments():
    plain = ManyArguments().to(memory_format=torch.channels_last)
    model, x = accelerate(copy.deepcopy(plain)), images()
    for args, options in [((x, x), {}), ((x,), {"scale": 3.0}), ((), {"x": x})]:
        torch.testing.assert_close(model(*args, **options), plain(*args, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type(dtype):
    model, plain = pair()
    model.to(dtype), plain.to(dtype)
    x = images().to(dtype)
    torch.testing.assert_close(model(x), plain(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_gradients_of_the_first_step_under_autocast(precision):
    """The check of the graph leaves no weights without gradients in autocast's cache."""
    model, plain = accelerate(small()), small()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        ours, own = results(model, images()), results(plain, images())
    assert ours.keys() == own.keys()
    largest = max(t.float().norm() for t in own.values())
    for name, want in own.items():
        assert (ours[name].float() - want.float()).norm() <= 0.02 * largest, name


def test_the_caller_s_tensor_and_another_layout():
    model, plain = pair()
    x = images().contiguous()
    before = x.clone()
    assert_as_exact(model, plain, x)
    assert torch.equal(x, before)
    why = set(explain(accelerate(nn.Sequential(nn.BatchNorm2d(16))), torch.ones(2, 16, 3, 3)).left)
    assert why == {"0"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_accelerated_twice_and_refused_ones(caplog):
    model = accelerate(small())
    forward = model.forward
    assert accelerate(model).forward is forward
    scripted = torch.jit.script(small())
    assert accelerate(scripted) is scripted
    replaced = small()
    replaced.forward = lambda x: x
    assert accelerate(replaced) is replaced
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
    assert torch.jit.script(accelerate(small()))(images()).shape == (4, 5)


def test_parts_can_be_accelerated():
    plain = small()
    model = copy.deepcopy(plain)
    accelerate(model[3])
    assert_as_exact(model, plain, images())
    accelerate(model)
    assert_as_exact(model, plain, images())
    assert fused(model) == [5, 1]


def test_plain_kernels_are_those_of_torch():
    model, plain = pair()
    with plain_kernels():
        assert torch.equal(results(model, images())["y"], results(plain, images())["y"])


def test_pickle_of_the_module():
    model, plain = pair()
    other = pickle.loads(pickle.dumps(model))
    assert_as_exact(other, plain, images())
