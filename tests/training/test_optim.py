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
from timm.scheduler import StepLRScheduler
from torch import nn
from torch.utils.data import DataLoader

from dwsep_zoo import UserError, create_model
from dwsep_zoo.nn import is_depthwise
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.optim import (
    OWN,
    batch_scale,
    check_optimizer,
    create_optimizer,
    create_schedule,
    parameter_groups,
    rate_factor,
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


def scheduled(steps, epoch_steps=1, **changes):
    own = recipe(**changes)
    optimizer = create_optimizer(own, [{"params": [nn.Parameter(torch.zeros(1))]}])
    return optimizer, create_schedule(optimizer, own, steps=steps, epoch_steps=epoch_steps)


def followed(optimizer, schedule, steps):
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def rates(steps, epoch_steps=1, **changes):
    return followed(*scheduled(steps, epoch_steps, **changes), steps)


def test_warm_up_then_half_a_cosine():
    found = rates(12, warmup_fraction=1 / 3, lr=2.0, min_lr=0.5)
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    expected = [0.5 + 0.75 * (1 + math.cos(math.pi * i / 8)) for i in range(9)]
    assert found[4:] == pytest.approx(expected)


def test_constant():
    changes = {"optimizer": "adamw", "schedule": "constant", "warmup_fraction": 0.0}
    assert rates(5, lr=0.1, **changes) == [0.1] * 6


EXPONENTIAL = {"schedule": "exponential", "decay_rate": 0.9, "lr": 2.0, "warmup_fraction": 0.0}


@pytest.mark.parametrize("staircase", [True, False])
def test_the_exponential_schedule_is_torchs(staircase):
    """Five steps an epoch, a factor every other epoch."""
    found = rates(60, 5, **EXPONENTIAL, decay_epochs=2, staircase=staircase)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 2.0)
    theirs = torch.optim.lr_scheduler
    schedule = (
        theirs.StepLR(optimizer, 10, 0.9)
        if staircase
        else theirs.ExponentialLR(optimizer, 0.9**0.1)
    )
    assert found == pytest.approx(followed(optimizer, schedule, 60))


def test_the_exponential_schedule_with_a_warm_up_is_timms():
    """Decay counts from the first step, as in EfficientNet's script; timm warms up from 0."""
    found = rates(1200, 50, **{**EXPONENTIAL, "warmup_fraction": 0.1}, decay_epochs=2.4)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 2.0)
    theirs = StepLRScheduler(
        optimizer, 120, 0.9, warmup_t=120, warmup_prefix=False, t_in_epochs=False
    )
    expected = []
    for step in range(1201):
        theirs.step_update(step)
        expected.append(optimizer.param_groups[0]["lr"])
    assert found[119:] == pytest.approx([2.0, *expected[120:]])
    assert found[:119] == pytest.approx(expected[1:120])


def test_steps_on_the_edge_of_an_epoch_belong_behind_it():
    """Also where 12 / (5 * 2.4) is rounded down."""
    own = recipe(**EXPONENTIAL, decay_epochs=2.4)
    for decays in range(1, 200):
        edge = 12 * decays
        before, behind = (rate_factor(own, step, 10**6, 5) for step in (edge - 1, edge))
        assert (before, behind) == pytest.approx((0.9 ** (decays - 1), 0.9**decays))


@pytest.mark.parametrize("schedule", ["cosine", "constant", "exponential"])
def test_a_schedule_resumes(schedule):
    changes = {**EXPONENTIAL, "schedule": schedule, "decay_epochs": 1.5, "warmup_fraction": 0.2}
    whole = rates(20, 3, **changes)
    optimizer, half = scheduled(20, 3, **changes)
    followed(optimizer, half, 9)
    states = copy.deepcopy([optimizer.state_dict(), half.state_dict()])
    resumed = scheduled(20, 3, **changes)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    assert followed(*resumed, 11) == whole[9:]


@pytest.mark.parametrize("lacking", ["decay_rate", "decay_epochs"])
def test_an_exponential_schedule_without_its_numbers_is_refused(lacking):
    changes = {**EXPONENTIAL, "decay_epochs": 1, lacking: None}
    with pytest.raises(UserError, match=r"needs recipe\.decay_rate and recipe\.decay_epochs"):
        recipe(**changes)


@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [("sgd", 0.25), ("muon", 0.25), ("rmsproptf", 0.25), ("adamw", 0.5), ("lamb", 0.5)],
)
def test_rates_for_a_batch_follow_that_of_a_step(optimizer, factor):
    """In proportion, for Adam's kind as the square root: 64 images where the rates are for 256."""
    own = recipe(optimizer=optimizer, lr=2.0, muon_lr=3.0, lr_batch=256)
    assert batch_scale(own, 64) == factor
    assert batch_scale(own.replace(lr_batch=None), 64) == 1
    groups = parameter_groups(
        create_model("mobilenet_v1", width_mult=0.125), 0.5, orthogonal=optimizer == "muon"
    )
    plain, scaled = (create_optimizer(own, groups, scale=s).param_groups for s in (1.0, factor))
    for one, other in zip(plain, scaled, strict=True):
        assert other["lr"] == pytest.approx(factor * one["lr"])


def test_rmsproptf_is_tensorflows():
    """``RMSPropOptimizer`` with L2, as TensorFlow 1 has it: mean squares begin at 1."""
    own = recipe(optimizer="rmsproptf", lr=0.3, momentum=0.8, eps=0.05, weight_decay=0.1)
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    optimizer = create_optimizer(own, [{"params": [weight], "weight_decay": 0.1}])
    value, mean, velocity = weight.detach().clone(), torch.ones(3), torch.zeros(3)
    value, mean, velocity = (x.double() for x in (value, mean, velocity))
    for number in range(5):
        gradient = torch.tensor([0.1 * number, -3.0, 2.0 - number], dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        total = gradient + 0.1 * value
        mean = 0.9 * mean + 0.1 * total**2
        velocity = 0.8 * velocity + 0.3 * total / (mean + 0.05).sqrt()
        value = value - velocity
        torch.testing.assert_close(weight.detach(), value)


@pytest.mark.parametrize("name", ["adamw", "rmsproptf", "lamb"])
def test_epsilon_reaches_the_optimizer(name):
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "weight_decay": 0.0}]
    assert create_optimizer(recipe(optimizer=name, eps=0.25), groups).param_groups[0]["eps"] == 0.25
    assert create_optimizer(recipe(optimizer=name), groups).param_groups[0]["eps"] < 1e-3


class Batches(L.LightningDataModule):
    def __init__(self, batches):
        super().__init__()
        self.batches, self.batch_size = DataLoader(batches, batch_size=None), 4

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
