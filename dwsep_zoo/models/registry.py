"""All models by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dwsep_zoo.errors import UserError, check_number, choose
from dwsep_zoo.models import mobilenet_v1, mobilenet_v2, mobilenet_v3, mobilenet_v4, xception
from dwsep_zoo.models.convnet import ConvNet, build
from dwsep_zoo.models.efficientnet import EFFICIENTNETS
from dwsep_zoo.models.spec import Architecture, with_output_stride
from dwsep_zoo.nn import ConvOp, create_conv
from dwsep_zoo.nn.layers import ACTS, Padding

if TYPE_CHECKING:
    from dwsep_zoo.weights import Source

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
    """The rows of a model.

    Args:
        name: see :func:`list_models`.
        width_mult: factor on every width, rounded to multiples of 8.
        output_stride: 32 is the paper's.
        padding: ``symmetric`` or TensorFlow's ``same``; ``None``: symmetric.
        act: another activation in place of the network's main one, such as ``relu6`` in V1.
        bn_eps: epsilon of the norms; ``None``: the architecture's.
        bn_momentum: weight of the newest batch in the running statistics; likewise.
        options: of one family: ``width_rule``, ``reduced_tail``, ``hidden`` (MobileNetV3),
            ``depth_mult`` (EfficientNet), ``shortcuts`` (Xception).

    Raises:
        UserError: for a value that is not possible, naming it and the choices.
    """
    choose(name, MODELS, "model")
    check_number("model.width_mult", width_mult)
    if not width_mult > 0:
        raise UserError(f"model.width_mult must be greater than 0; got {width_mult!r}")
    options = {key: value for key, value in options.items() if value is not None}
    for key, value in options.items():
        choose(
            key,
            [*_own_options(name), "bn_eps", "bn_momentum", "padding", "act"],
            f"option of {name}",
        )
        if key.endswith("_mult"):
            check_number(f"model.{key}", value)
            if not value > 0:
                raise UserError(f"model.{key} must be greater than 0; got {value!r}")
    for key, rate in (("bn_eps", bn_eps), ("bn_momentum", bn_momentum)):
        check_number(f"model.{key}", rate, optional=True)
        if rate is not None and not 0 < rate <= 1:
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
    num_classes: int | None = None,
    in_chans: int = 3,
    pretrained: str | bool | Path | None = None,
    width_mult: float = 1.0,
    output_stride: int = 32,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    **options: Any,
) -> ConvNet:
    """Build a network of the zoo.

    Args:
        name: see :func:`list_models`.
        conv: what the factorised convolutions are: see :func:`dwsep_zoo.list_convs`.
        num_classes: outputs of the classifier; 0 for none; ``None``: 1000, or the weights'.
        in_chans: channels of the images.
        pretrained: weights to load: a name of :func:`dwsep_zoo.weights.available`, a hub id, a
            file, the folder of a run, or ``True`` for the best known. Options that are not given
            (padding, epsilon of the norms, activation ...) are then those of the weights, and
            ``default_cfg`` says how their images were prepared.
        width_mult: factor on every width, rounded to multiples of 8.
        output_stride: 32 is the paper's; small images use 8 or 16.
        drop_rate: dropout before the classifier; ``None``: the paper's.
        drop_path_rate: stochastic depth; ``None``: the paper's.
        options: of the architecture; ``None``: its own, see :func:`create_architecture`.

    Returns:
        A network in training mode: ``(N, in_chans, H, W)`` -> ``(N, num_classes)``.

    Raises:
        UserError: for a value that is not possible, naming it and the choices; for weights of
            another network, naming the first tensor that does not fit.
    """
    choose(name, MODELS, "model")
    source = None
    if pretrained:
        # The one import to the right: weights know the models, and a model is asked for with them.
        from dwsep_zoo import weights

        source = weights.resolve(name, pretrained)
        if source.published:
            options, output_stride = _options_of(
                source, conv=conv, width_mult=width_mult, output_stride=output_stride, **options
            )
    if num_classes is None:
        num_classes = len(source.class_names) if source and source.class_names else 1000
    for key, value, least in (("num_classes", num_classes, 0), ("in_chans", in_chans, 1)):
        if value < least:
            raise UserError(f"{key} must be at least {least}; got {value}")
    for key, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        check_number(f"model.{key}", rate, optional=True)
        if rate is not None and not 0 <= rate < 1:
            raise UserError(f"model.{key} must be in [0, 1); got {rate}")
    conv = create_conv(conv)
    arch = create_architecture(name, width_mult=width_mult, output_stride=output_stride, **options)
    model = build(
        arch,
        conv=conv,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    model.build_args = {
        "name": name,
        "conv": {"name": conv.name, **conv.options},
        "num_classes": num_classes,
        "in_chans": in_chans,
        "width_mult": width_mult,
        "output_stride": output_stride,
        "drop_rate": drop_rate,
        "drop_path_rate": drop_path_rate,
        **{key: value for key, value in options.items() if value is not None},
    }
    if source:
        weights.load_into(model, source)
    return model


def _options_of(
    source: Source, *, width_mult: float, conv: Any, output_stride: int, **options: Any
) -> tuple[dict[str, Any], int]:
    """The user's options, and the weights' where there are none; a width is not theirs to change.

    Returns:
        The options, and the output stride, which is the weights' unless the user changed it.
    """
    published = source.published
    assert published is not None
    if published.width_mult not in (None, width_mult):
        raise UserError(
            f"{source.what}: has width {published.width_mult:g}, the network {width_mult:g}; "
            f"use width_mult={published.width_mult:g}"
        )
    theirs = dict(published.options)
    kind = create_conv(theirs.pop("conv", "depthwise_separable"))
    if kind != create_conv(conv):
        raise UserError(
            f"{source.what}: was trained with conv={kind.name}, the network has "
            f"{create_conv(conv).name}"
        )
    stride = theirs.pop("output_stride", output_stride)
    for key in ("drop_rate", "drop_path_rate"):  # how the weights were trained, not what they are
        theirs.pop(key, None)
    given = {key: value for key, value in options.items() if value is not None}
    return {**theirs, **given}, stride if output_stride == 32 else output_stride
