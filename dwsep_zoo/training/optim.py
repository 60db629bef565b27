"""Optimizer and schedule from the recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.nn import DepthwiseConv2d

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "constant")


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_norm_and_bias: bool = False,
    decay_depthwise: bool = False,
) -> list[dict[str, Any]]:
    """Split the parameters into those that decay and those that do not.

    Norms' and biases' numbers are no weights that could shrink a function. Depthwise filters have
    so few that MobileNetV1's paper gives them little or no decay (section 3.2).
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim <= 1:
                decays = decay_norm_and_bias
            else:
                decays = decay_depthwise or not isinstance(module, DepthwiseConv2d)
            (decay if decays else no_decay).append(parameter)
    groups = [
        {"name": "decay", "params": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "params": no_decay, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    *,
    lr: float,
    momentum: float,
    betas: Sequence[float],
) -> Optimizer:
    """``sgd`` (Nesterov's momentum) or ``adamw``, in PyTorch's fused implementation."""
    if choose(name, OPTIMIZERS, "recipe.optimizer") == "sgd":
        return torch.optim.SGD(groups, lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    return torch.optim.AdamW(groups, lr, betas=(betas[0], betas[1]), fused=True)


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
    positive = ("epochs", "lr")
    not_negative = ("weight_decay", "min_lr")
    below_one = ("warmup_fraction", "momentum", "label_smoothing", "model_ema_decay")
    for key in positive:
        if not recipe[key] > 0:
            raise UserError(f"recipe.{key} must be greater than 0; got {recipe[key]}")
    for key in not_negative:
        if not recipe[key] >= 0:
            raise UserError(f"recipe.{key} must not be negative; got {recipe[key]}")
    for key in below_one:
        if recipe[key] is not None and not 0 <= recipe[key] < 1:
            raise UserError(f"recipe.{key} must be in [0, 1); got {recipe[key]}")
    choose(recipe["optimizer"], OPTIMIZERS, "recipe.optimizer")
    choose(recipe["schedule"], SCHEDULES, "recipe.schedule")
