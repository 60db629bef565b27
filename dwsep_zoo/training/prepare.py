"""A data set and a network that fit each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dwsep_zoo.analysis.budget import TOLERANCE, match_width
from dwsep_zoo.analysis.count import Count, count
from dwsep_zoo.analysis.memory import state_dict_bytes
from dwsep_zoo.data import ImageData, check_trainable, create_data, list_options
from dwsep_zoo.data.mix import mixing_of
from dwsep_zoo.errors import UserError
from dwsep_zoo.models import ConvNet
from dwsep_zoo.schema.parse import parse
from dwsep_zoo.schema.record import DataRecord, Match
from dwsep_zoo.schema.settings import Settings
from dwsep_zoo.training.finetune import check_freeze
from dwsep_zoo.training.progressive import check_progressive
from dwsep_zoo.training.teacher import Teacher, open_teacher
from dwsep_zoo.training.variant import shared
from dwsep_zoo.weights import output_stride_of, preprocessing
from dwsep_zoo.weights.classes import fit_classifier
from dwsep_zoo.zoo import check_pretrained, create_model

log = logging.getLogger("dwsep_zoo")

LARGEST_STRIDE = 32
PREPROCESSING = ("image_size", "mean", "std", "interpolation", "crop_pct", "background")

Network = dict[str, Any]
"""Arguments of :func:`dwsep_zoo.create_model`."""


@dataclass(frozen=True)
class Prepared:
    """A data set, a network for it, and the network's cost.

    Attributes:
        network: the arguments that build the network again, without its first weights.
        match: the budget that gave the network its width, if one did.
        teacher: of the training.
    """

    data: ImageData
    model: ConvNet
    network: Network
    cost: Count
    size_bytes: int
    match: Match | None
    teacher: Teacher | None = None

    def description(self) -> dict[str, Any]:
        """Plain data that a checkpoint carries, so that its network can be used."""
        data = self.data.describe()
        return {
            "model": self.network,
            "class_names": data["class_names"],
            "preprocessing": {key: data[key] for key in PREPROCESSING},
        }


def check_network_and_data(settings: Settings) -> None:
    """Build the network without memory for its weights, and the data set without its images.

    Raises:
        UserError: naming the value.
    """
    network = network_without_data(settings)
    if settings.model.pretrained and not settings.match:
        check_pretrained(
            settings.model.name,
            settings.model.pretrained,
            conv=network["conv"],
            width_mult=settings.model.width_mult,
        )
    with torch.device("meta"):
        check_freeze(create_model(**network), settings.recipe)
        if settings.match:
            create_model(**{**network, "conv": settings.to})
    data_of(settings, _preprocessing_of_weights(settings))  # reads nothing yet


def network_without_data(settings: Settings) -> Network:
    """The network's arguments before classes, channels and, if left open, the image size are known.

    Raises:
        UserError: for images that are too small for it.
    """
    network: Network = {**settings.model.plain(), "pretrained": None}
    network["conv"] = settings.conv.plain()
    size = settings.data.image_size
    if size is not None:
        network["output_stride"] = _output_stride(settings, size)
    elif network["output_stride"] == "auto":
        network["output_stride"] = LARGEST_STRIDE
    return network


def prepare(settings: Settings, *, match: Match | None = None) -> Prepared:
    """Load the data and build the network.

    Args:
        settings: those of the run.
        match: budget of the run that is resumed, whose network has its width.

    Raises:
        UserError: for data that cannot be had, or that the network cannot take.
    """
    found = _preprocessing_of_weights(settings)
    if found:
        log.info("images as for the weights: %s", ", ".join(f"{k} {v}" for k, v in found.items()))
    data = data_of(settings, found)
    data.prepare_data()
    data.setup()
    network: Network = {
        **settings.model.plain(),
        "output_stride": _output_stride(settings, data.image_size),
        "conv": settings.conv.plain(),
        "num_classes": data.num_classes,
        "in_chans": data.in_chans,
    }
    input_size = (data.in_chans, data.image_size, data.image_size)
    if settings.match and settings.conv.name != settings.to:
        match = match or _solve(settings, input_size, network)
        network["width_mult"] = match.width_mult
        _say_match(match, settings.model.width_mult)
    model = create_model(**network)
    if pretrained := settings.model.pretrained:
        theirs = model.default_cfg.get("label_names") or ()
        fit_classifier(
            model, data.class_names, theirs, f"pretrained={pretrained}", training=settings.train
        )
    return Prepared(
        data=data,
        model=model,
        network=model.build_args,
        cost=count(model, input_size),
        size_bytes=state_dict_bytes(model),
        match=match,
        teacher=open_teacher(settings.distill, data, model) if settings.train else None,
    )


def recorded_data(settings: Settings, record: DataRecord) -> ImageData:
    """The data of a run that has been, with the preprocessing that its weights asked for then.

    Raises:
        UserError: for data that are not here; nothing is downloaded.
    """
    theirs = record.plain() if settings.model.pretrained else {}
    data = data_of(settings, _left_open(settings, theirs))
    data.setup()
    return data


def _solve(settings: Settings, input_size: tuple[int, int, int], network: Network) -> Match:
    quantity = settings.match
    assert quantity is not None

    def solve() -> Match:
        return match_width(quantity, settings.to, input_size, **network)

    if quantity != "latency":
        return solve()
    # Measured once for all seeds, which would else train networks of different widths.
    folder = Path(settings.paths.output_dir)
    values, _ = shared("match", settings, folder, lambda: solve().plain())
    return parse(Match, values, "match")


def _say_match(match: Match, width_mult: float) -> None:
    log.info(
        "match=%s: width %g has %s, conv=%s at width %g has %s (%+.2f %%)",
        match.quantity,
        match.width_mult,
        _amount(match.quantity, match.achieved),
        match.to,
        width_mult,
        _amount(match.quantity, match.target),
        100 * match.residual,
    )
    if abs(match.residual) > TOLERANCE:
        log.warning(
            "match=%s: no width comes nearer than %+.1f %%, as channels are multiples of 8",
            match.quantity,
            100 * match.residual,
        )


def _amount(quantity: str, value: float) -> str:
    return {
        "params": f"{value:,.0f} parameters",
        "macs": f"{value / 1e6:,.2f} M MACs",
        "latency": f"{value:.2f} ms",
    }[quantity]


def _preprocessing_of_weights(settings: Settings) -> dict[str, Any]:
    """The weights' preprocessing, as far as the user left it open and the data set takes it."""
    pretrained = settings.model.pretrained
    name, conv = settings.model.name, settings.conv.name
    theirs = preprocessing(name, pretrained, conv) if pretrained else {}
    return _left_open(settings, theirs)


def _left_open(settings: Settings, theirs: Mapping[str, Any]) -> dict[str, Any]:
    known = list_options(settings.data.name)
    return {
        key: theirs[key]
        for key in PREPROCESSING
        if key in known and getattr(settings.data, key) is None and theirs.get(key) is not None
    }


def data_of(settings: Settings, preprocessing: Mapping[str, Any] | None = None) -> ImageData:
    """The data of a run with these settings, before anything is read.

    Args:
        settings: those of the run.
        preprocessing: of the weights it begins with.

    Raises:
        UserError: for data that cannot be had, or cannot be trained on.
    """
    check_trainable(settings.data.name)
    data, folder = settings.data.replace(**(preprocessing or {})), settings.paths.data_dir
    mixing = mixing_of(settings.recipe)
    return create_data(data, seed=settings.seed, data_dir=folder, mixing=mixing)


def auto_output_stride(image_size: int) -> int:
    """The largest stride that leaves a last feature map of at least 2 x 2 pixels, at most 32."""
    stride = LARGEST_STRIDE
    while stride > 1 and image_size < 2 * stride:
        stride //= 2
    return stride


def _auto_stride(settings: Settings, image_size: int) -> int:
    """By the size of the images, but at most the weights' own, whose features need it."""
    by_size, pretrained = auto_output_stride(image_size), settings.model.pretrained
    if not pretrained:
        return by_size
    theirs = output_stride_of(settings.model.name, pretrained, settings.conv.name)
    return min(by_size, theirs or by_size)


def _output_stride(settings: Settings, image_size: int) -> int:
    """The network's output stride for images of this size.

    Raises:
        UserError: if they are too small for it.
    """
    given = settings.model.output_stride
    stride = _auto_stride(settings, image_size) if given == "auto" else given
    if image_size < stride:
        raise UserError(
            f"images of {image_size} pixels are smaller than the network's output stride "
            f"{stride}; use model.output_stride=auto or a larger data.image_size"
        )
    check_progressive(settings.recipe, image_size, stride)
    return stride
