"""What a recipe changes in the course of a training, from its settings and a number of images."""

from __future__ import annotations

import torch

from dwsep_zoo.errors import UserError
from dwsep_zoo.nn.init import CLASSIFIER
from dwsep_zoo.report.pictures import Course
from dwsep_zoo.schema.settings import Settings
from dwsep_zoo.training.average import kept
from dwsep_zoo.training.optim import (
    ParamGroup,
    batch_scale,
    create_optimizer,
    rate_factor,
    recipe_groups,
    steps_of_epoch,
)
from dwsep_zoo.training.prepare import Network
from dwsep_zoo.training.progressive import training_size
from dwsep_zoo.zoo import create_model

POINTS = 400
"""Steps that are looked at, beside the first and the last one of every epoch."""


def course_of(settings: Settings, network: Network, *, images: int, image_size: int) -> Course:
    """The course of a training that is never made.

    Args:
        settings: those of the run.
        network: arguments of ``create_model``; no memory is used for its weights.
        images: for training, of an epoch.
        image_size: side of the data's images in pixels.

    Raises:
        UserError: if there are fewer images than a step has.
    """
    recipe, trainer = settings.recipe, settings.trainer
    devices = len(trainer.devices) if isinstance(trainer.devices, tuple) else trainer.devices
    processes = (1 if devices == "auto" else devices) * (trainer.num_nodes or 1)
    batch = min(settings.data.images, images // processes)
    given = trainer.overfit_batches or trainer.limit_train_batches
    limit = 1.0 if given is None else given
    accumulated = trainer.accumulate_grad_batches
    epoch_steps = batch and steps_of_epoch(images // processes // batch, limit, accumulated)
    if not epoch_steps:
        raise UserError(f"{images} images make no step of this training")
    steps = epoch_steps * trainer.max_epochs
    steps = steps if trainer.max_steps is None else min(steps, trainer.max_steps)
    at = _points(steps, epoch_steps)
    epochs = [step // epoch_steps for step in at]
    factors = [rate_factor(recipe, step, steps, epoch_steps) for step in at]
    alone = min(recipe.freeze_epochs or 0, trainer.max_epochs)
    step_images = batch * processes * accumulated
    peaks = _peaks(settings, network, step_images)
    return Course(
        epochs=[step / epoch_steps for step in at],
        rates={
            part: [
                0.0 if epoch < alone and part != CLASSIFIER and CLASSIFIER in peaks else peak * f
                for epoch, f in zip(epochs, factors, strict=True)
            ]
            for part, peak in peaks.items()
        },
        decays=recipe.schedule == "exponential",
        sizes=[
            training_size(
                epoch / trainer.max_epochs,
                full=image_size,
                initial=recipe.initial_size,
                full_from=recipe.full_size_from,
            )
            for epoch in epochs
        ],
        average=[kept(recipe.model_ema_decay, step, warmup=recipe.model_ema_warmup) for step in at]
        if recipe.model_ema_decay
        else [],
        alone=alone,
        steps=steps,
        images=step_images,
    )


def _points(steps: int, epoch_steps: int) -> list[int]:
    ends = {step for first in range(0, steps, epoch_steps) for step in (first, first - 1)}
    between = {step * (steps - 1) // POINTS for step in range(POINTS)}
    return sorted({step for step in ends | between if step >= 0} | {steps - 1})


def _peaks(settings: Settings, network: Network, images: int) -> dict[str, float]:
    """The peak of each part of the network; parts of the same peak are one."""
    recipe = settings.recipe
    with torch.device("meta"):
        groups = recipe_groups(create_model(**{**network, "pretrained": None}), recipe)
        scale = batch_scale(recipe, images)
        made = create_optimizer(recipe, groups, scale=scale, fused=False).param_groups
    peaks: dict[str, float] = {}
    for group in made:
        peaks.setdefault(_label(group), group["lr"])
    if len(set(peaks.values())) == 1:
        return {"all": next(iter(peaks.values()))}
    return peaks


def _label(group: ParamGroup) -> str:
    part = str(group.get("part") or group["name"].rpartition(".")[0] or "others")
    if group.get("orthogonal"):
        return "mixing channels" if part == "others" else f"{part}, mixing channels"
    return part
