"""From a configuration to a data set and a network that fit each other."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dwsep_zoo.analysis.budget import TOLERANCE, Match, check_match, match_width
from dwsep_zoo.analysis.count import Count, count
from dwsep_zoo.analysis.memory import state_dict_bytes
from dwsep_zoo.data import ImageData, create_data, list_options
from dwsep_zoo.errors import UserError
from dwsep_zoo.models import ConvNet, create_model
from dwsep_zoo.training.finetune import check_freeze
from dwsep_zoo.training.progressive import check_progressive
from dwsep_zoo.training.shared import shared

log = logging.getLogger("dwsep_zoo")

LARGEST_STRIDE = 32
PREPROCESSING = ("image_size", "mean", "std", "interpolation", "crop_pct")


@dataclass(frozen=True)
class Setup:
    """A data set, a network for it, and what the network costs.

    ``network`` holds the arguments of :func:`dwsep_zoo.create_model` that build it again, without
    the weights that it began with. ``match`` says where its width comes from, unless it was given.
    """

    data: ImageData
    model: ConvNet
    network: dict[str, Any]
    cost: Count
    size_bytes: int
    match: Match | None

    def description(self) -> dict[str, Any]:
        """What a checkpoint has to carry so that its network can be used: plain data."""
        data = self.data.describe()
        return {
            "model": self.network,
            "class_names": data["class_names"],
            "preprocessing": {key: data[key] for key in PREPROCESSING},
        }


def set_up(cfg: dict[str, Any], *, match: Match | None = None) -> Setup:
    """Check everything that can be checked, then load the data and build the network.

    Args:
        cfg: the configuration.
        match: of the run that is resumed, whose network has its width.

    Raises:
        UserError: for wrong names and values before a data set is downloaded; for data that the
            network cannot take after it.
    """
    network = dict(cfg["model"])
    check_match(cfg["match"], cfg["to"], network["pretrained"])
    with torch.device("meta"):  # costs nothing
        sketch = {**network, "pretrained": None}
        if network["output_stride"] == "auto":
            sketch["output_stride"] = LARGEST_STRIDE
        check_freeze(create_model(conv=cfg["conv"], **sketch), cfg["recipe"])
    options = _data_options(cfg["data"], network["name"], network.get("pretrained"))
    data = create_data(seed=cfg["seed"], data_dir=cfg["paths"]["data_dir"], **options)
    if options.get("image_size"):  # known before a download
        _output_stride(cfg, options["image_size"])
    data.prepare_data()
    data.setup()

    network["output_stride"] = _output_stride(cfg, data.image_size)
    network.update(conv=dict(cfg["conv"]), num_classes=data.num_classes, in_chans=data.in_chans)
    input_size = (data.in_chans, data.image_size, data.image_size)
    if cfg["match"] and cfg["conv"]["name"] != cfg["to"]:
        match = match or _match(cfg, input_size, network)
        network["width_mult"] = match.width_mult
        _say_match(match, cfg["model"]["width_mult"])
    model = create_model(**network)
    return Setup(
        data=data,
        model=model,
        network=model.build_args,
        cost=count(model, input_size),
        size_bytes=state_dict_bytes(model),
        match=match,
    )


def _match(cfg: dict[str, Any], input_size: tuple[int, int, int], network: dict[str, Any]) -> Match:
    def solve() -> Match:
        return match_width(cfg["match"], cfg["to"], input_size, **network)

    if cfg["match"] != "latency":
        return solve()
    # Measured once for all seeds, or they would be of different networks.
    folder = Path(cfg["paths"]["output_dir"])
    values, _ = shared("match", cfg, folder, lambda: solve().as_dict())
    return Match.from_dict(values)


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


def _data_options(
    options: dict[str, Any], model: str, pretrained: str | bool | None
) -> dict[str, Any]:
    """The options of the data; those of preprocessing that the user left open are the weights'.

    Raises:
        UserError: for weights that do not exist.
    """
    # These have a default, but no value that stands for it.
    options = {
        key: value
        for key, value in options.items()
        if value is not None or key not in ("interpolation", "crop_pct")
    }
    if not pretrained:
        return options
    from dwsep_zoo.weights import preprocessing

    given = {key for key in PREPROCESSING if options.get(key) is not None}
    if given & {"mean", "std"}:
        given |= {"mean", "std"}  # belong together
    theirs = preprocessing(model, pretrained) or {}
    known = list_options(options["name"])
    left = [key for key in PREPROCESSING if key in known and key not in given]
    found = {key: theirs[key] for key in left if theirs.get(key) is not None}
    if found:
        log.info("images as for the weights: %s", ", ".join(f"{k} {v}" for k, v in found.items()))
    return {**options, **found}


def auto_output_stride(image_size: int) -> int:
    """The largest stride that leaves a last feature map of at least 2 x 2 pixels, at most 32."""
    stride = LARGEST_STRIDE
    while stride > 1 and image_size < 2 * stride:
        stride //= 2
    return stride


def _output_stride(cfg: dict[str, Any], image_size: int) -> int:
    """The network's; raises UserError if images of this size are too small for it."""
    stride = cfg["model"]["output_stride"]
    if stride == "auto":
        stride = auto_output_stride(image_size)
    if image_size < stride:
        raise UserError(
            f"images of {image_size} pixels are smaller than the network's output stride "
            f"{stride}; use model.output_stride=auto or a larger data.image_size"
        )
    check_progressive(cfg["recipe"], image_size, stride)
    return stride
