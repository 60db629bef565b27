"""The module of a training: its network, its objective, its teacher."""

from __future__ import annotations

import torch

from dwsep_zoo.acceleration import accelerate
from dwsep_zoo.models import ConvNet
from dwsep_zoo.schema.settings import Settings
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.objective import balanced_weights
from dwsep_zoo.training.prepare import Prepared


def create_module(settings: Settings, prepared: Prepared, model: ConvNet) -> LitClassifier:
    """What Lightning trains.

    Args:
        settings: those of the run.
        prepared: data and teacher.
        model: the network, which is trained.
    """
    data, weights = prepared.data, None
    if settings.recipe.class_weights:
        weights = balanced_weights(data.splits["train"].labels, data.num_classes)
    if settings.trainer.channels_last:
        model.to(memory_format=torch.channels_last)
    return LitClassifier(
        accelerate(model),
        num_classes=data.num_classes,
        recipe=settings.recipe,
        seed=settings.seed,
        description=prepared.description(),
        class_weights=weights,
        teacher=prepared.teacher,
    )
