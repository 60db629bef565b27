"""All models by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any

from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.models.convnet import ConvNet, build
from dwsep_zoo.models.efficientnet import efficientnet_b0
from dwsep_zoo.models.mobilenet_v1 import mobilenet_v1
from dwsep_zoo.models.mobilenet_v2 import mobilenet_v2
from dwsep_zoo.models.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from dwsep_zoo.models.spec import Architecture, with_output_stride
from dwsep_zoo.models.xception import xception
from dwsep_zoo.nn import ConvOp, create_conv

MODELS: dict[str, Callable[..., Architecture]] = {
    model.__name__: model
    for model in (
        mobilenet_v1,
        mobilenet_v2,
        mobilenet_v3_large,
        mobilenet_v3_small,
        xception,
        efficientnet_b0,
    )
}


def list_models(pattern: str = "*") -> list[str]:
    """The names of the models that match a shell pattern, such as ``mobilenet*``."""
    return [name for name in MODELS if fnmatch(name, pattern)]


def create_architecture(
    name: str, *, width_mult: float = 1.0, output_stride: int = 32
) -> Architecture:
    """The rows of a model.

    Raises:
        UserError: for an unknown name, a width that is not positive, an impossible output stride.
    """
    choose(name, MODELS, "model")
    if not width_mult > 0:
        raise UserError(f"model.width_mult must be greater than 0; got {width_mult!r}")
    return with_output_stride(MODELS[name](width_mult=width_mult), output_stride)


def create_model(
    name: str,
    *,
    conv: str | Mapping[str, Any] | ConvOp = "depthwise_separable",
    num_classes: int = 1000,
    in_chans: int = 3,
    width_mult: float = 1.0,
    output_stride: int = 32,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
) -> ConvNet:
    """Build a network of the zoo.

    Args:
        name: see :func:`list_models`.
        conv: what the factorised convolutions are: see :func:`dwsep_zoo.list_convs`.
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the images.
        width_mult: factor on every width, rounded to multiples of 8.
        output_stride: 32 is the paper's; small images use 8 or 16.
        drop_rate: dropout before the classifier; ``None``: the paper's.
        drop_path_rate: stochastic depth; ``None``: the paper's.

    Returns:
        A network in training mode: ``(N, in_chans, H, W)`` -> ``(N, num_classes)``.

    Raises:
        UserError: for a value that is not possible, naming it and the choices.
    """
    for key, value, least in (("num_classes", num_classes, 0), ("in_chans", in_chans, 1)):
        if value < least:
            raise UserError(f"{key} must be at least {least}; got {value}")
    for key, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        if rate is not None and not 0 <= rate < 1:
            raise UserError(f"model.{key} must be in [0, 1); got {rate}")
    return build(
        create_architecture(name, width_mult=width_mult, output_stride=output_stride),
        conv=create_conv(conv),
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
