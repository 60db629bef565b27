"""Who decays, and the schedule against its closed form."""

import math

import pytest
import torch
from torch import nn

from dwsep_zoo import UserError, create_model
from dwsep_zoo.config import compose_config
from dwsep_zoo.nn import DepthwiseConv2d
from dwsep_zoo.training.optim import (
    OPTIMIZERS,
    check_recipe,
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


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small", "xception"])
def test_norms_biases_and_depthwise_filters_do_not_decay(name):
    model = create_model(name, width_mult=0.25)
    members, groups = grouped(model)
    everything = {id(p) for p in model.parameters()}
    spared = (
        ids(model, nn.BatchNorm2d)
        | ids(model, DepthwiseConv2d)
        | ids(model, nn.Conv2d, nn.Linear, biases=True)
    )
    assert members["no_decay"] == spared
    assert members["decay"] == everything - spared
    assert (groups["decay"]["weight_decay"], groups["no_decay"]["weight_decay"]) == (0.5, 0.0)


def test_the_two_switches():
    model = create_model("mobilenet_v1", width_mult=0.25)
    members, _ = grouped(model, decay_depthwise=True)
    assert ids(model, DepthwiseConv2d) <= members["decay"]
    members, _ = grouped(model, decay_depthwise=True, decay_norm_and_bias=True)
    assert set(members) == {"decay"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_classifier_may_have_a_rate_of_its_own(optimizer):
    model = create_model("mobilenet_v2", width_mult=0.25)
    muon = optimizer == "muon"
    plain = parameter_groups(model, 0.5, orthogonal=muon)
    groups = parameter_groups(model, 0.5, orthogonal=muon, classifier_scale=0.1)
    options = {"momentum": 0.9, "betas": (0.9, 0.99), "muon_lr": 3.0}
    rates = {
        id(p): group["lr"]
        for group in create_optimizer(optimizer, groups, lr=2.0, **options).param_groups
        for p in group["params"]
    }
    before = {
        id(p): (group["lr"], group["weight_decay"])
        for group in create_optimizer(optimizer, plain, lr=2.0, **options).param_groups
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


def test_warm_up_then_half_a_cosine():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = create_optimizer("sgd", [{"params": [weight]}], lr=2.0, momentum=0.9, betas=(0, 0))
    schedule = create_schedule(optimizer, "cosine", steps=12, warmup_steps=4, lr=2.0, min_lr=0.5)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    expected = [0.5 + 0.75 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert rates[4:] == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)


def test_constant():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = create_optimizer(
        "adamw", [{"params": [weight]}], lr=0.1, momentum=0, betas=(0.9, 0.9)
    )
    schedule = create_schedule(optimizer, "constant", steps=5, warmup_steps=0, lr=0.1, min_lr=0)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.lr=0", "recipe.lr must be greater than 0; got 0"),
        ("recipe.momentum=1", r"recipe.momentum must be in \[0, 1\); got 1"),
        ("recipe.muon_lr=0", "recipe.muon_lr must be greater than 0; got 0"),
        ("recipe.classifier_lr=0", "recipe.classifier_lr must be greater than 0; got 0"),
        ("recipe.muon_momentum=1", r"recipe.muon_momentum must be in \[0, 1\); got 1"),
        ("recipe.weight_decay=-1", "recipe.weight_decay must not be negative; got -1"),
        ("recipe.lr=fast", "recipe.lr must be a number; got 'fast'"),
        ("recipe.momentum=null", "recipe.momentum must be a number; got None"),
        ("recipe.full_size_from=null", "recipe.full_size_from must be a number; got None"),
        ("recipe.eval_flip=maybe", "recipe.eval_flip must be true or false; got 'maybe'"),
        ("recipe.eval_shift=1", "recipe.eval_shift must be true or false; got 1"),
        ("recipe.betas=[0.9]", r"recipe.betas must be two numbers.*got \[0.9\]"),
        ("recipe.optimizer=sdg", "unknown recipe.optimizer 'sdg'; did you mean 'sgd'"),
        ("recipe.schedule=cos", "unknown recipe.schedule 'cos'; did you mean 'cosine'"),
    ],
)
def test_messages(override, message):
    recipe = compose_config([override, "paths.output_dir=unused"])["recipe"]
    with pytest.raises(UserError, match=message):
        check_recipe(recipe)
