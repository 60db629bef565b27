"""Configurations of older versions, as today's settings read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dwsep_zoo.schema.data_settings import (
    AugmentSettings,
    ColumnSettings,
    DataSettings,
    FolderSettings,
)
from dwsep_zoo.schema.parse import Group
from dwsep_zoo.schema.settings import TrainerSettings

UNTAUGHT = {"teacher": None, "kind": "kd", "temperature": 4.0, "weight": 0.9, "features": 0.0}
"""The settings of a run before there were teachers."""


def upgrade_config(config: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Bring the configuration of an older record to today's, with the values that were true then.

    Schema 1 had no keys for what a data set, the Trainer or an optimizer left at its default.
    Schema 2 knew the running statistics of norms only, and measured latencies once. Schema 3 drew
    no pictures; a run that goes on does. Schema 4 had no keys for simulated int8 and newer data,
    schema 5 none for mixed images, more augmentation, rates for a batch, exponential schedules,
    other trackers, teachers and unequal classes.
    """
    upgraded = {"hparams_search": None, "distill": dict(UNTAUGHT), **config}
    later: dict[str, dict[str, object]] = {
        "data": {
            "folders": dict.fromkeys(FolderSettings.model_fields),
            "columns": dict.fromkeys(ColumnSettings.model_fields),
            **dict.fromkeys(("csv", "hf", "corruption", "severity", "on_error", "background")),
            "sampler": None,
        },
        "profile": {"patience": 0.0},
        "logger": {"pictures": True, **dict.fromkeys(("tracker", "project", "uri"))},
    }
    for name, added in later.items():
        if isinstance(group := upgraded.get(name), Mapping):
            upgraded[name] = {**added, **group}
    data = upgraded.get("data")
    if isinstance(data, dict) and isinstance(augment := data.get("augment"), Mapping):
        data["augment"] = {"erase": None, "interpolation": None, **augment}
    recipe = {
        **{"norm_statistics": "running", "staircase": True, "model_ema_warmup": False},
        **dict.fromkeys(("simulated_int8", "mixup", "cutmix", "class_weights")),
        **dict.fromkeys(("lr_batch", "eps", "decay_rate", "decay_epochs")),
        **(upgraded.get("recipe") or {}),
    }
    if version == 1:
        groups: dict[str, type[Group]] = {"data": DataSettings, "trainer": TrainerSettings}
        for name, kind in groups.items():
            upgraded[name] = {**dict.fromkeys(kind.model_fields), **(upgraded.get(name) or {})}
        if recipe.get("betas") == [0.9, 0.999]:
            recipe["betas"] = None  # they were AdamW's own
        data = upgraded["data"]
        data["augment"] = {**dict.fromkeys(AugmentSettings.model_fields), **(data["augment"] or {})}
    return {**upgraded, "recipe": recipe}
