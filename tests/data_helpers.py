"""What tests of data sets share."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dwsep_zoo.config import compose_settings
from dwsep_zoo.data import ImageData, create_data
from dwsep_zoo.schema.data_settings import DataSettings
from dwsep_zoo.schema.parse import parse


@cache
def _composed(name: str) -> dict[str, Any]:
    return compose_settings([f"data={name}"]).data.plain()


def data_settings(name: str = "digits", **changes: Any) -> DataSettings:
    """``configs/data/<name>.yaml`` with changes, those of a group in a dictionary."""
    values = copy.deepcopy(_composed(name))
    for key, value in changes.items():
        if isinstance(value, dict) and key in values:
            values[key].update(value)
        else:
            values[key] = value
    return parse(DataSettings, values, "data")


def load_data(
    name: str = "digits", *, seed: int = 0, data_dir: str | Path = "unused", **changes: Any
) -> ImageData:
    """A data set that is ready for training."""
    data = create_data(data_settings(name, **changes), seed=seed, data_dir=data_dir)
    data.prepare_data()
    data.setup()
    return data


def in_process(data: ImageData, rank: int, world_size: int) -> ImageData:
    """The data as one of several processes has them."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank,
        world_size=world_size,
        num_devices=world_size,
        strategy=strategy,
        precision="32-true",
    )
    return data


def batches(data: ImageData, split: str = "train", epoch: int = 0) -> list[tuple[Tensor, Tensor]]:
    """The batches of an epoch as the network gets them."""
    loader = getattr(data, f"{split}_dataloader")()
    loader.batch_sampler.sampler.set_epoch(epoch)
    return [data.prepare_batch(batch) for batch in loader]
