"""All models by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any, get_args

import torch

from dwsep_zoo.errors import UserError, check_number, choose
from dwsep_zoo.models import mobilenet_v1, mobilenet_v2, mobilenet_v3, mobilenet_v4, xception
from dwsep_zoo.models.convnet import ConvNet
from dwsep_zoo.models.efficientnet import EFFICIENTNETS
from dwsep_zoo.models.spec import Architecture, with_output_stride
from dwsep_zoo.nn import ConvOp, create_conv
from dwsep_zoo.nn.layers import ACTS, Padding

LARGEST_MULT = 32.0  # at this width_mult a layer has 1,024 times the weights

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
    """Look up a model's rows and apply the options to them.

    Args:
        name: see :func:`list_models`.
        width_mult: factor on every width, rounded to multiples of 8.
        output_stride: 32 is the paper's.
        padding: ``symmetric`` or TensorFlow's ``same``; ``None``: symmetric.
        act: replaces the network's main activation, such as ``relu6`` in V1.
        bn_eps: epsilon of the norms; ``None``: the architecture's.
        bn_momentum: weight of the newest batch in the running statistics; ``None`` likewise.
        options: of one family: ``width_rule``, ``reduced_tail``, ``hidden`` (MobileNetV3),
            ``depth_mult`` (EfficientNet), ``shortcuts`` (Xception); ``None``: its default.

    Raises:
        UserError: naming the value and the choices.
    """
    choose(name, MODELS, "model")
    options = {key: value for key, value in options.items() if value is not None}
    own = inspect.signature(MODELS[name]).parameters
    names = {*own, "bn_eps", "bn_momentum", "padding", "act"}
    for key, value in options.items():
        choose(key, names, f"option of {name}")
        _check_option(f"model.{key}", value, own[key].default)
    _check_option("model.width_mult", width_mult, 1.0)
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


def _check_option(key: str, value: object, default: object) -> None:
    """Check a value against the type of the option's default; ``float`` options are factors."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{key} must be true or false; got {value!r}")
    elif isinstance(default, int):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{key} must be a whole number from 1 up; got {value!r}")
    elif isinstance(default, float):
        check_number(key, value)
        assert isinstance(value, int | float)
        if not value > 0:
            raise UserError(f"{key} must be greater than 0; got {value!r}")
        if value > LARGEST_MULT:
            raise UserError(f"{key} must be at most {LARGEST_MULT:g}; got {value!r}")


def build_model(
    name: str,
    *,
    conv: str | Mapping[str, Any] | ConvOp = "depthwise_separable",
    num_classes: int = 1000,
    in_chans: int = 3,
    width_mult: float = 1.0,
    output_stride: int = 32,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    **options: Any,
) -> ConvNet:
    """Build a freshly initialised network; :func:`dwsep_zoo.create_model` also loads weights.

    The arguments are those of ``create_model``, without ``pretrained``. The structure is made on
    the meta device and the memory filled once, so that no weight is initialised twice; inside
    ``torch.device("meta")`` the network stays there.

    Raises:
        UserError: naming the value and the choices, or the memory that is needed.
    """
    choose(name, MODELS, "model")
    for key, value, least in (("num_classes", num_classes, 0), ("in_chans", in_chans, 1)):
        if value < least:
            raise UserError(f"{key} must be at least {least}; got {value}")
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    for key, rate in rates.items():
        check_number(f"model.{key}", rate, optional=True)
        if rate is not None and not 0 <= rate < 1:
            raise UserError(f"model.{key} must be in [0, 1); got {rate}")
    conv = create_conv(conv)
    arch = create_architecture(name, width_mult=width_mult, output_stride=output_stride, **options)
    device = torch.get_default_device()
    with torch.device("meta"):
        model = ConvNet(arch, conv=conv, num_classes=num_classes, in_chans=in_chans, **rates)
    if drop_path_rate and not any(type(m).__name__ == "DropPath" for m in model.modules()):
        raise UserError(
            f"model.drop_path_rate={drop_path_rate} has no effect: this network has no shortcuts"
        )
    if device.type != "meta":
        check_room(sum(tensor.nbytes for tensor in model.state_dict().values()), name)
        model.to_empty(device=device)
        arch.init(model)
    model.build_args = {
        "name": name,
        "conv": {"name": conv.name, **conv.options},
        "num_classes": num_classes,
        "in_chans": in_chans,
        "width_mult": width_mult,
        "output_stride": output_stride,
        **rates,
        **{key: value for key, value in options.items() if value is not None},
    }
    return model


def check_room(size: int, what: str) -> None:
    """Refuse bytes that exceed the machine's memory: the system would end the process.

    Raises:
        UserError: with both numbers.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on every system
        return
    if size > memory:
        raise UserError(
            f"{what} takes {size / 1e9:,.0f} GB and this machine has {memory / 1e9:,.0f} GB of "
            "memory; set a smaller width_mult, size or batch_size"
        )
