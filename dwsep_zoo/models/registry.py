"""All models by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any, get_args

from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.models import mobilenet_v1, mobilenet_v2, mobilenet_v3, mobilenet_v4, xception
from dwsep_zoo.models.convnet import ConvNet, build
from dwsep_zoo.models.efficientnet import EFFICIENTNETS
from dwsep_zoo.models.spec import Architecture, with_output_stride
from dwsep_zoo.nn import ConvOp, create_conv
from dwsep_zoo.nn.layers import ACTS, Padding

MODELS: dict[str, Callable[..., Architecture]] = {
    **{
        model.__name__: model
        for model in (
            mobilenet_v1.mobilenet_v1,
            mobilenet_v1.mobilenet_v1_shallow,
            mobilenet_v2.mobilenet_v2,
            mobilenet_v3.mobilenet_v3_large,
            mobilenet_v3.mobilenet_v3_small,
            mobilenet_v3.mobilenet_v3_large_minimal,
            mobilenet_v3.mobilenet_v3_small_minimal,
            mobilenet_v4.mobilenet_v4_conv_small,
            mobilenet_v4.mobilenet_v4_conv_medium,
            mobilenet_v4.mobilenet_v4_conv_large,
            xception.xception,
            xception.xception41,
            xception.xception65,
            xception.xception71,
        )
    },
    **EFFICIENTNETS,
}


def list_models(pattern: str = "*") -> list[str]:
    """The names of the models that match a shell pattern, such as ``mobilenet*``."""
    return [name for name in MODELS if fnmatch(name, pattern)]


def create_architecture(
    name: str,
    *,
    width_mult: float = 1.0,
    output_stride: int = 32,
    padding: str | None = None,
    act: str | None = None,
    bn_eps: float | None = None,
    bn_momentum: float | None = None,
    **options: Any,
) -> Architecture:
    """The rows of a model; see :func:`create_model` for the arguments.

    Raises:
        UserError: for a value that is not possible, naming it and the choices.
    """
    choose(name, MODELS, "model")
    if not width_mult > 0:
        raise UserError(f"model.width_mult must be greater than 0; got {width_mult!r}")
    options = {key: value for key, value in options.items() if value is not None}
    for key, value in options.items():
        choose(
            key,
            [*_own_options(name), "bn_eps", "bn_momentum", "padding", "act"],
            f"option of {name}",
        )
        if key.endswith("_mult") and not value > 0:
            raise UserError(f"model.{key} must be greater than 0; got {value!r}")
    for key, rate, low in (("bn_eps", bn_eps, 0), ("bn_momentum", bn_momentum, 0)):
        if rate is not None and not low < rate <= 1:
            raise UserError(f"model.{key} must be in (0, 1]; got {rate!r}")
    if padding is not None:
        choose(padding, get_args(Padding), "model.padding")
    changes: dict[str, Any] = {
        "padding": padding,
        "act": ACTS[choose(act, ACTS, "model.act")] if act is not None else None,
        "bn_eps": bn_eps,
        "bn_momentum": bn_momentum,
    }
    arch = MODELS[name](width_mult=width_mult, **options)
    layers = replace(arch.layers, **{k: v for k, v in changes.items() if v is not None})
    return with_output_stride(replace(arch, layers=layers), output_stride)


def _own_options(name: str) -> list[str]:
    """The options of this family alone, such as the ``depth_mult`` of EfficientNet."""
    return [p for p in inspect.signature(MODELS[name]).parameters if p != "width_mult"]


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
    padding: str | None = None,
    act: str | None = None,
    bn_eps: float | None = None,
    bn_momentum: float | None = None,
    **options: Any,
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
        padding: ``symmetric`` or TensorFlow's ``same``; ``None``: symmetric.
        act: another activation in place of the network's main one, such as ``relu6`` in V1.
        bn_eps: epsilon of the norms; ``None``: the architecture's.
        bn_momentum: weight of the newest batch in the running statistics; likewise.
        options: of one family: ``width_rule`` (V3), ``depth_mult`` (EfficientNet).

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
        create_architecture(
            name,
            width_mult=width_mult,
            output_stride=output_stride,
            padding=padding,
            act=act,
            bn_eps=bn_eps,
            bn_momentum=bn_momentum,
            **options,
        ),
        conv=create_conv(conv),
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
