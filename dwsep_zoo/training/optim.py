"""Optimizer and schedule from the recipe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dwsep_zoo.errors import UserError, choose, first_line
from dwsep_zoo.nn import is_depthwise
from dwsep_zoo.nn.init import CLASSIFIER
from dwsep_zoo.schema.settings import Recipe
from dwsep_zoo.training.muon import Muon

OWN = ("sgd", "adamw", "muon")
UNREPEATABLE = ("kron", "kronc", "kronw")  # their state lacks the random numbers they drew
ParamGroup = dict[str, Any]
"""A parameter group as torch.optim has it."""


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
) -> list[ParamGroup]:
    """Split the trained parameters into those that decay and those that do not.

    Norms and biases do not decay. Depthwise filters have so few weights that MobileNetV1's paper
    gives them little or no decay (section 3.2).

    With ``layer_decay`` each part of the network (:func:`part_of`) has groups of its own; their
    ``lr_scale`` is 1 for the classifier and falls by this factor from part to part towards the
    stem. ``classifier_scale`` multiplies the classifier's.

    With ``orthogonal`` the weights of convolutions that mix channels, except the stem's, form
    groups for :class:`~dwsep_zoo.training.muon.Muon`.
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
                decays = decay_depthwise or not is_depthwise(module)
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
        group: ParamGroup = {"params": params, "weight_decay": rate}
        group["name"] = f"{part}.{kind}" if part else kind
        group["lr_scale"] = classifier_scale if part == CLASSIFIER else 1.0
        if kind == "orthogonal":
            group["orthogonal"] = True
        if layer_decay is not None:
            group["lr_scale"] *= layer_decay ** (len(parts) - 1 - parts.index(part))
            group["part"] = part
        groups.append(group)
    return groups


def recipe_groups(model: nn.Module, recipe: Recipe) -> list[ParamGroup]:
    """The :func:`parameter_groups` of a recipe."""
    return parameter_groups(
        model,
        recipe.weight_decay,
        decay_norm_and_bias=recipe.decay_norm_and_bias,
        decay_depthwise=recipe.decay_depthwise,
        layer_decay=recipe.layer_decay,
        classifier_scale=(recipe.classifier_lr or recipe.lr) / recipe.lr,
        orthogonal=recipe.optimizer == "muon",
    )


def _mixes_channels(module: nn.Module) -> bool:
    """Whether a module is a dense convolution followed by a norm; others have a bias."""
    return isinstance(module, nn.Conv2d) and module.groups == 1 and module.bias is None


def batch_scale(recipe: Recipe, images: int) -> float:
    """The factor on the recipe's rates for steps of this many images.

    In proportion to ``lr_batch`` (Goyal et al., arXiv:1706.02677, section 2.1); for Adam's kind as
    the square root, which is the rule of timm's training script.
    """
    if recipe.lr_batch is None:
        return 1.0
    adams = any(kind in recipe.optimizer for kind in ("ada", "lamb"))
    return (images / recipe.lr_batch) ** (0.5 if adams else 1.0)


def create_optimizer(
    recipe: Recipe, groups: list[ParamGroup], *, scale: float = 1.0, fused: bool = True
) -> Optimizer:
    """Make the recipe's optimizer.

    ``sgd`` has Nesterov's momentum; ``muon`` is :class:`~dwsep_zoo.training.muon.Muon` for
    orthogonal groups and ``sgd`` for the others. All other names are timm's.

    Args:
        recipe: names the optimizer and its rates; a group's rate is ``lr_scale`` times that.
        groups: see :func:`parameter_groups`.
        scale: factor on all rates, see :func:`batch_scale`.
        fused: use PyTorch's fused kernels. Lightning cannot clip their gradients in mixed
            precision, where a fused optimizer may undo the scaling of the gradients itself.

    Raises:
        UserError: for an optimizer that does not exist or does not run here.
    """
    name, lr, momentum = recipe.optimizer, recipe.lr * scale, recipe.momentum
    groups = [{**group, "lr": lr * group.get("lr_scale", 1.0)} for group in groups]
    if name == "muon":
        return Muon([_for_muon(group, recipe, scale) for group in groups])
    if name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
    if name == "adamw":
        betas, eps = recipe.betas or (0.9, 0.999), recipe.eps or 1e-8
        return torch.optim.AdamW(groups, lr, betas=betas, eps=eps, fused=fused)
    return _from_timm(recipe, groups)


def _for_muon(group: ParamGroup, recipe: Recipe, scale: float) -> ParamGroup:
    if not group.get("orthogonal", False):
        return {**group, "momentum": recipe.momentum}
    rate = recipe.muon_lr * scale * group.get("lr_scale", 1.0)
    return {**group, "lr": rate, "momentum": recipe.muon_momentum}


def _from_timm(recipe: Recipe, groups: list[ParamGroup]) -> Optimizer:
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

    name = recipe.optimizer
    choose(name, {*OWN, *map(str, list_optimizers())}, "recipe.optimizer")
    if name in UNREPEATABLE:
        raise UserError(
            f"recipe.optimizer={name} draws random numbers that no checkpoint holds, so a resumed "
            "run would end elsewhere"
        )
    info = get_optimizer_info(name)
    if info.second_order:
        raise UserError(f"recipe.optimizer={name} needs second derivatives, which no step computes")
    own: dict[str, Any] = {}
    if recipe.betas and info.num_betas == 2:
        own["betas"] = recipe.betas
    if recipe.eps and info.has_eps:
        own["eps"] = recipe.eps
    try:
        return create_optimizer_v2(
            groups, opt=name, lr=recipe.lr, weight_decay=0.0, momentum=recipe.momentum, **own
        )
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"recipe.optimizer={name} does not run here: {first_line(error)}"
        ) from error


def check_optimizer(recipe: Recipe) -> None:
    """Raises UserError for an optimizer that does not exist or does not run here."""
    if recipe.optimizer not in OWN:  # timm takes seconds to import
        weight = nn.Parameter(torch.zeros(2, 2))
        create_optimizer(recipe, [{"params": [weight], "weight_decay": recipe.weight_decay}])


def steps_of_epoch(batches: int, limit: int | float, accumulated: int) -> int:
    """Optimizer steps of an epoch: ``limit`` is a number or a part of its batches."""
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return math.ceil(batches / accumulated)


def create_schedule(
    optimizer: Optimizer, recipe: Recipe, *, steps: int, epoch_steps: int
) -> LambdaLR:
    """The recipe's schedule, which multiplies the peak of every group by :func:`rate_factor`.

    Groups with another peak (``classifier_lr``, ``layer_decay``, ``muon_lr``) follow in proportion
    and end at the same part ``min_lr / lr`` of it.
    """
    return LambdaLR(optimizer, lambda step: rate_factor(recipe, step, steps, epoch_steps))


def rate_factor(recipe: Recipe, step: int, steps: int, epoch_steps: int) -> float:
    """The learning rate of a step over its peak.

    A linear warm-up over ``warmup_fraction`` of all steps; then half a cosine down to ``min_lr``,
    or a constant rate, or ``decay_rate`` to the power of the epochs over ``decay_epochs``, rounded
    down with ``staircase``. These epochs count from the first step, as in TensorFlow's
    ``exponential_decay`` and in EfficientNet's training script.

    Args:
        recipe: names the schedule.
        step: from 0 on.
        steps: of the whole training.
        epoch_steps: of an epoch.
    """
    warmup_steps = int(steps * recipe.warmup_fraction)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "exponential":
        assert recipe.decay_rate is not None
        assert recipe.decay_epochs is not None
        decays = step / (epoch_steps * recipe.decay_epochs)
        # A step on the edge belongs behind it, whatever the division rounds to.
        return recipe.decay_rate ** (math.floor(decays + 1e-9) if recipe.staircase else decays)
    lr, min_lr = recipe.lr, recipe.min_lr
    done = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
    return (min_lr + (lr - min_lr) * (1 + math.cos(math.pi * done)) / 2) / lr
