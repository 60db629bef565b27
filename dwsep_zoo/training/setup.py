"""From a configuration to a data set and a network that fit each other."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dwsep_zoo.analysis.count import Count, count
from dwsep_zoo.data import ImageData, create_data
from dwsep_zoo.errors import UserError
from dwsep_zoo.models import ConvNet, create_model

LARGEST_STRIDE = 32


@dataclass(frozen=True)
class Setup:
    """A data set, a network for it, and what the network costs.

    ``network`` holds the arguments of :func:`dwsep_zoo.create_model` that build it again.
    """

    data: ImageData
    model: ConvNet
    network: dict[str, Any]
    cost: Count
    size_bytes: int

    def description(self) -> dict[str, Any]:
        """What a checkpoint has to carry so that its network can be used: plain data."""
        data = self.data.describe()
        keys = ("image_size", "mean", "std", "interpolation", "crop_pct")
        return {
            "model": self.network,
            "class_names": data["class_names"],
            "preprocessing": {key: data[key] for key in keys},
        }


def set_up(cfg: dict[str, Any]) -> Setup:
    """Check everything that can be checked, then load the data and build the network.

    Raises:
        UserError: for wrong names and values before a data set is downloaded; for data that the
            network cannot take after it.
    """
    network = dict(cfg["model"])
    auto = network["output_stride"] == "auto"
    with torch.device("meta"):  # costs nothing
        create_model(
            conv=cfg["conv"],
            **{**network, "output_stride": LARGEST_STRIDE if auto else network["output_stride"]},
        )
    data = create_data(seed=cfg["seed"], data_dir=cfg["paths"]["data_dir"], **cfg["data"])
    data.prepare_data()
    data.setup()

    if auto:
        network["output_stride"] = auto_output_stride(data.image_size)
    stride = network["output_stride"]
    if data.image_size < stride:
        raise UserError(
            f"images of {data.image_size} pixels are smaller than the network's output stride "
            f"{stride}; use model.output_stride=auto or a larger data.image_size"
        )
    network.update(conv=dict(cfg["conv"]), num_classes=data.num_classes, in_chans=data.in_chans)
    model = create_model(**network)
    return Setup(
        data=data,
        model=model,
        network=network,
        cost=count(model, (data.in_chans, data.image_size, data.image_size)),
        size_bytes=_size_bytes(model),
    )


def auto_output_stride(image_size: int) -> int:
    """The largest stride that leaves a last feature map of at least 2 x 2 pixels, at most 32."""
    stride = LARGEST_STRIDE
    while stride > 1 and image_size < 2 * stride:
        stride //= 2
    return stride


def _size_bytes(model: nn.Module) -> int:
    """Of the weights in a file."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()
