"""Networks that only have shapes, and their counts, for tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dwsep_zoo.commands.arguments import Conv, NetworkArguments
from dwsep_zoo.errors import UserError

if TYPE_CHECKING:
    from dwsep_zoo.analysis.count import Count
    from dwsep_zoo.models import ConvNet

UNIT = "1 MAC = one multiply-add = 2 FLOPs"


def counted_network(name: str, conv: Conv, options: NetworkArguments) -> tuple[ConvNet, Count]:
    """Build a network on the meta device and count it at the size of the options.

    Raises:
        UserError: for a network that there is not, or an image smaller than its output stride.
    """
    import torch

    from dwsep_zoo.analysis.count import count
    from dwsep_zoo.models import build_model

    with torch.device("meta"):
        # Stochastic depth costs nothing, but its module comes from timm, which is slow to import.
        model = build_model(
            name,
            conv=conv,
            width_mult=options.width_mult,
            output_stride=options.output_stride,
            num_classes=options.num_classes,
            in_chans=options.in_chans,
            drop_path_rate=0.0,
        )
    return model, count(model, input_size(model, options.size))


def input_size(model: ConvNet, size: int | None) -> tuple[int, int, int]:
    """(C, H, W) of an image; ``size=None``: the paper's.

    Raises:
        UserError: if it is smaller than the output stride.
    """
    channels, *paper = model.default_cfg["input_size"]
    height, width = (size, size) if size else paper
    if height < model.output_stride:
        raise UserError(
            f"images of {height} pixels are smaller than the output stride {model.output_stride}; "
            "set output_stride=8 or a larger size"
        )
    return channels, height, width


def by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
