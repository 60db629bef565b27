"""Optimizer and schedule from the recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dwsep_zoo.errors import UserError, check_number, choose
from dwsep_zoo.nn import DepthwiseConv2d
from dwsep_zoo.training.muon import Muon

OPTIMIZERS = ("sgd", "adamw", "muon")
SCHEDULES = ("cosine", "constant")


CLASSIFIER = "classifier"


def part_of(name: str) -> str:
    """The part of the network that a parameter is in, by its name.

    ``stem``, ``stages.0``, ``stages.1``, ..., ``head`` (with the hidden layer) or ``classifier``.
    """
    first, *rest = name.split(".")
    if first == "stages":
        return f"{first}.{rest[0]}"
    return "head" if first == "hidden" else first


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_norm_and_bias: bool = False,
    decay_depthwise: bool = False,
    layer_decay: float | None = None,
    classifier_scale: float = 1.0,
    orthogonal: bool = False,
) -> list[dict[str, Any]]:
    """Split the parameters that are trained into those that decay and those that do not.

    Norms' and biases' numbers are no weights that could shrink a function. Depthwise filters have
    so few that MobileNetV1's paper gives them little or no decay (section 3.2).

    With ``layer_decay`` each part of the network (:func:`part_of`) has groups of its own, whose
    ``lr_scale`` is 1 for the classifier and ``layer_decay`` of the next part's for every other.

    ``classifier_scale`` multiplies that of the classifier, which then has groups of its own, too.

    With ``orthogonal`` the weights of convolutions that mix channels, those behind the stem, have
    groups of their own, for :class:`~dwsep_zoo.training.muon.Muon`.
    """
    parts = list(dict.fromkeys(part_of(name) for name, _ in model.named_parameters()))
    members: dict[tuple[str, str], list[nn.Parameter]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if parameter.ndim <= 1:
                decays = decay_norm_and_bias
            else:
                decays = decay_depthwise or not isinstance(module, DepthwiseConv2d)
            kind = "decay" if decays else "no_decay"
            if orthogonal and _mixes_channels(module) and part_of(prefix) != "stem":
                kind = "orthogonal"
            part = part_of(f"{prefix}.{name}")
            if layer_decay is None and (part != CLASSIFIER or classifier_scale == 1):
                part = ""
            members.setdefault((part, kind), []).append(parameter)

    groups = []
    for (part, kind), params in members.items():
        rate = 0.0 if kind in ("no_decay", "orthogonal") else weight_decay
        group: dict[str, Any] = {"params": params, "weight_decay": rate}
        group["name"] = f"{part}.{kind}" if part else kind
        group["lr_scale"] = classifier_scale if part == CLASSIFIER else 1.0
        if kind == "orthogonal":
            group["orthogonal"] = True
        if layer_decay is not None:
            group["lr_scale"] *= layer_decay ** (len(parts) - 1 - parts.index(part))
            group["part"] = part
        groups.append(group)
    return groups


def _mixes_channels(module: nn.Module) -> bool:
    """Whether it is a dense convolution with a norm behind it; those without have a bias."""
    return isinstance(module, nn.Conv2d) and module.groups == 1 and module.bias is None


def create_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    *,
    lr: float,
    momentum: float,
    betas: Sequence[float],
    muon_lr: float = 0.0,
    muon_momentum: float = 0.0,
    fused: bool = True,
) -> Optimizer:
    """``sgd`` (Nesterov's momentum), ``adamw``, or ``muon``, which is ``sgd`` for the other groups.

    The rate of a group is ``lr_scale`` of ``lr``, if it has one. ``fused`` takes PyTorch's
    fastest implementation, whose gradients lightning cannot clip in mixed precision: an optimizer
    that might undo the scaling of gradients itself gets them scaled.
    """
    choose(name, OPTIMIZERS, "recipe.optimizer")

    def completed(group: dict[str, Any]) -> dict[str, Any]:
        orthogonal = group.get("orthogonal", False)
        rate, inertia = (muon_lr, muon_momentum) if orthogonal else (lr, momentum)
        return {**group, "lr": rate * group.get("lr_scale", 1.0), "momentum": inertia}

    groups = [completed(group) for group in groups]
    if name == "muon":
        return Muon(groups)
    if name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
    return torch.optim.AdamW(groups, lr, betas=(betas[0], betas[1]), fused=fused)


def create_schedule(
    optimizer: Optimizer, name: str, *, steps: int, warmup_steps: int, lr: float, min_lr: float
) -> LambdaLR:
    """Linear warm-up to ``lr``, then half a cosine down to ``min_lr``, or constant."""
    choose(name, SCHEDULES, "recipe.schedule")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if name == "constant":
            return 1.0
        done = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
        return (min_lr + (lr - min_lr) * (1 + math.cos(math.pi * done)) / 2) / lr

    return LambdaLR(optimizer, factor)


def check_recipe(recipe: dict[str, Any]) -> None:
    """Raises UserError for values that no training could use."""
    positive = ("epochs", "lr", "muon_lr", "classifier_lr")
    not_negative = ("weight_decay", "min_lr")
    below_one = (
        *("warmup_fraction", "momentum", "muon_momentum", "label_smoothing", "model_ema_decay"),
    )
    optional = ("model_ema_decay", "layer_decay", "classifier_lr")
    for key in (*positive, *not_negative, *below_one, "layer_decay", "full_size_from"):
        check_number(f"recipe.{key}", recipe[key], optional=key in optional)
    for key in ("decay_norm_and_bias", "decay_depthwise", "eval_flip", "eval_shift"):
        if not isinstance(recipe[key], bool):
            raise UserError(f"recipe.{key} must be true or false; got {recipe[key]!r}")
    betas = recipe["betas"]
    if not isinstance(betas, list) or len(betas) != 2:
        raise UserError(f"recipe.betas must be two numbers, such as [0.9, 0.999]; got {betas!r}")
    for beta in betas:
        check_number("recipe.betas", beta)
    for key in positive:
        if recipe[key] is not None and not recipe[key] > 0:
            raise UserError(f"recipe.{key} must be greater than 0; got {recipe[key]}")
    for key in not_negative:
        if not recipe[key] >= 0:
            raise UserError(f"recipe.{key} must not be negative; got {recipe[key]}")
    for key in below_one:
        if recipe[key] is not None and not 0 <= recipe[key] < 1:
            raise UserError(f"recipe.{key} must be in [0, 1); got {recipe[key]}")
    layer_decay, freeze, epochs = (recipe[k] for k in ("layer_decay", "freeze", "freeze_epochs"))
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise UserError(f"recipe.layer_decay must be in (0, 1]; got {layer_decay}")
    if epochs is not None and not (isinstance(epochs, int) and epochs >= 0):
        raise UserError(f"recipe.freeze_epochs must be a whole number from 0 up; got {epochs!r}")
    if freeze is not None and not isinstance(freeze, list):
        raise UserError(f"recipe.freeze must be a list, such as [{freeze}]; got {freeze!r}")
    choose(recipe["optimizer"], OPTIMIZERS, "recipe.optimizer")
    choose(recipe["schedule"], SCHEDULES, "recipe.schedule")
