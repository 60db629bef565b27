"""Groups of parameters, every optimizer's steps, and the schedule against its closed form."""

import copy
import io
import math
from collections import OrderedDict

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import different, recipe
from timm.optim import list_optimizers
from torch import nn
from torch.utils.data import DataLoader

from dwsep_zoo import UserError, create_model
from dwsep_zoo.nn import is_depthwise
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.optim import (
    OWN,
    check_optimizer,
    create_optimizer,
    create_schedule,
    parameter_groups,
)


def grouped(model, **options):
    groups = {g["name"]: g for g in parameter_groups(model, 0.5, **options)}
    return {name: {id(p) for p in g["params"]} for name, g in groups.items()}, groups


def ids(model, *kinds, biases=False):
    return {
        id(p)
        for m in model.modules()
        if isinstance(m, kinds)
        for n, p in m.named_parameters(recurse=False)
        if (n == "bias") == biases or isinstance(m, nn.BatchNorm2d)
    }


def depthwise_filters(model):
    return {id(m.weight) for m in model.modules() if is_depthwise(m)}


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small", "xception"])
def test_norms_biases_and_depthwise_filters_do_not_decay(name):
    model = create_model(name, width_mult=0.25)
    members, groups = grouped(model)
    everything = {id(p) for p in model.parameters()}
    spared = (
        ids(model, nn.BatchNorm2d)
        | depthwise_filters(model)
        | ids(model, nn.Conv2d, nn.Linear, biases=True)
    )
    assert members["no_decay"] == spared
    assert members["decay"] == everything - spared
    assert (groups["decay"]["weight_decay"], groups["no_decay"]["weight_decay"]) == (0.5, 0.0)


def test_the_two_switches():
    model = create_model("mobilenet_v1", width_mult=0.25)
    members, _ = grouped(model, decay_depthwise=True)
    assert depthwise_filters(model) <= members["decay"]
    members, _ = grouped(model, decay_depthwise=True, decay_norm_and_bias=True)
    assert set(members) == {"decay"}


@pytest.mark.parametrize("optimizer", OWN)
def test_the_classifier_may_have_a_rate_of_its_own(optimizer):
    model = create_model("mobilenet_v2", width_mult=0.25)
    muon = optimizer == "muon"
    plain = parameter_groups(model, 0.5, orthogonal=muon)
    groups = parameter_groups(model, 0.5, orthogonal=muon, classifier_scale=0.1)
    own = recipe(optimizer=optimizer, lr=2.0, muon_lr=3.0)
    rates = {
        id(p): group["lr"]
        for group in create_optimizer(own, groups).param_groups
        for p in group["params"]
    }
    before = {
        id(p): (group["lr"], group["weight_decay"])
        for group in create_optimizer(own, plain).param_groups
        for p in group["params"]
    }
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay == {key: weight_decay for key, (_, weight_decay) in before.items()}
    classifier = {id(p) for p in model.classifier.parameters()}
    for key, (rate, _) in before.items():
        assert rates[key] == pytest.approx(rate * (0.1 if key in classifier else 1))
    names = [group["name"] for group in groups]
    assert sorted(set(names) - {g["name"] for g in plain}) == [
        "classifier.decay",
        "classifier.no_decay",
    ]
    assert len(set(names)) == len(names)


def test_the_classifiers_rate_and_those_of_the_layers_multiply():
    model = create_model("mobilenet_v1", width_mult=0.25)
    alone = parameter_groups(model, 0.5, layer_decay=0.5)
    both = parameter_groups(model, 0.5, layer_decay=0.5, classifier_scale=10.0)
    assert [g["name"] for g in alone] == [g["name"] for g in both]
    for one, other in zip(alone, both, strict=True):
        times = 10 if one["part"] == "classifier" else 1
        assert other["lr_scale"] == pytest.approx(times * one["lr_scale"])


@pytest.fixture(scope="module")
def tiny():
    """The first layers of a network and a classifier: few parameters, but of all kinds."""
    network = create_model("mobilenet_v1", width_mult=0.125, in_chans=1, num_classes=4)
    body = {"stem": network.stem, "stages": network.stages[:1]}
    tail = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "classifier": nn.Linear(8, 4)}
    return nn.Sequential(OrderedDict({**body, **tail}))


def begin(model, own):
    model = copy.deepcopy(model)
    groups = parameter_groups(model, own.weight_decay, orthogonal=own.optimizer == "muon")
    return model, create_optimizer(own, groups)


def step(model, optimizer):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 1, 8, 8, generator=generator)

    def closure():  # as Lightning calls it
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), torch.arange(8) % 4)
        loss.backward()
        return loss

    assert optimizer.step(closure).isfinite()


@pytest.mark.parametrize("name", sorted({*OWN, *list_optimizers()}))
def test_every_optimizer_trains_and_resumes_or_is_refused(name, tiny):
    own = recipe(optimizer=name, lr=0.01)
    try:
        model, optimizer = begin(tiny, own)
    except UserError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert refusal.startswith(f"recipe.optimizer={name} ")
        assert "\n" not in refusal
        assert name not in OWN
        return
    step(model, optimizer)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    again, resumed = begin(tiny, own)
    for part, state in zip((again, resumed), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for both in ((model, optimizer), (again, resumed)):
        torch.rand(1)  # other random numbers
        step(*both)
    assert different(model.state_dict(), again.state_dict()) == []
    for old, new in zip(tiny.parameters(), model.parameters(), strict=True):
        assert new.isfinite().all()
        assert not torch.equal(old, new)


def test_most_optimizers_of_timm_are_not_refused():
    """Those that are need CUDA, second derivatives, or random numbers of their own."""
    needs = ("bnb", "fused", "adahessian", "kron")
    refused = []
    for name in list_optimizers():
        try:
            create_optimizer(recipe(optimizer=name), [{"params": [nn.Parameter(torch.zeros(2))]}])
        except UserError:
            refused.append(name)
    assert not [name for name in refused if not name.startswith(needs)]


def test_an_optimizer_of_timm_in_a_run(run):
    result = run("run", "recipe.optimizer=lion", "recipe.lr=0.001", "recipe.betas=[0.9,0.98]")
    assert result["config"]["recipe"]["optimizer"] == "lion"
    assert result["status"] == "finished"


@pytest.mark.parametrize(("typed", "meant"), [("sdg", "sgd"), ("lyon", "lion"), ("adamW", "adamw")])
def test_an_unknown_optimizer_names_the_nearest(typed, meant):
    with pytest.raises(UserError, match=f"unknown recipe.optimizer '{typed}'; .*mean '{meant}'"):
        check_optimizer(recipe(optimizer=typed))


def rates(steps, **changes):
    own = recipe(**changes)
    optimizer = create_optimizer(own, [{"params": [nn.Parameter(torch.zeros(1))]}])
    schedule = create_schedule(optimizer, own, steps=steps)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_warm_up_then_half_a_cosine():
    found = rates(12, warmup_fraction=1 / 3, lr=2.0, min_lr=0.5)
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    expected = [0.5 + 0.75 * (1 + math.cos(math.pi * i / 8)) for i in range(9)]
    assert found[4:] == pytest.approx(expected)


def test_constant():
    changes = {"optimizer": "adamw", "schedule": "constant", "warmup_fraction": 0.0}
    assert rates(5, lr=0.1, **changes) == [0.1] * 6


class Batches(L.LightningDataModule):
    def __init__(self, batches):
        super().__init__()
        self.batches = DataLoader(batches, batch_size=None)

    def train_dataloader(self):
        return self.batches

    def val_dataloader(self):
        return self.batches

    def training_batch(self, batch):
        return (*batch, None)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
@pytest.mark.parametrize("accumulated", [1, 2, 3, 4, 5])
def test_a_step_takes_the_mean_of_the_batches_that_went_in(accumulated):
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3), torch.randint(5, (4,))) for _ in range(5)]
    plain = recipe(
        **{"lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "warmup_fraction": 0.0},
        schedule="constant",
    )
    model = nn.Linear(3, 5)
    expected = copy.deepcopy(model)
    for first in range(0, 5, accumulated):
        part = batches[first : first + accumulated]
        losses = [
            F.cross_entropy(expected(x), y, label_smoothing=plain.label_smoothing) for x, y in part
        ]
        grads = torch.autograd.grad(torch.stack(losses).mean(), list(expected.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(expected.parameters(), grads, strict=True):
                parameter -= plain.lr * grad
    module = LitClassifier(model, num_classes=5, recipe=plain, seed=0, description={})
    trainer = L.Trainer(
        **{"accelerator": "cpu", "max_epochs": 1, "accumulate_grad_batches": accumulated},
        **{"log_every_n_steps": 1, "num_sanity_val_steps": 0},
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False),
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=Batches(batches))
    torch.testing.assert_close(model.state_dict(), expected.state_dict())
