"""Networks with weights: the models of the zoo, and what fills them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dwsep_zoo import weights
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.models import ConvNet, build_model, list_models
from dwsep_zoo.nn import ConvOp, create_conv
from dwsep_zoo.weights.catalog import Published


def create_model(
    name: str,
    *,
    conv: str | Mapping[str, Any] | ConvOp = "depthwise_separable",
    num_classes: int | None = None,
    in_chans: int = 3,
    pretrained: str | bool | Path | None = None,
    width_mult: float | None = None,
    output_stride: int = 32,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    **options: Any,
) -> ConvNet:
    """Build a network of the zoo.

    Args:
        name: see :func:`list_models`.
        conv: operator of the factorised convolutions, see :func:`dwsep_zoo.list_convs`.
        num_classes: outputs of the classifier; 0 for none; ``None``: 1000, or the weights'.
        in_chans: channels of the images.
        pretrained: weights to load: a name of :func:`dwsep_zoo.weights.available`, a hub id, a
            file, the folder of a run, or ``True`` for the best known. Options that are not given
            (conv's own, padding, epsilon of the norms, activation ...) are then those of the
            weights, and ``default_cfg`` says how their images were prepared.
        width_mult: factor on every width, rounded to multiples of 8; ``None``: 1, or the weights'.
        output_stride: 32 is the paper's; small images use 8 or 16.
        drop_rate: dropout before the classifier; ``None``: the paper's.
        drop_path_rate: stochastic depth; ``None``: the paper's.
        options: of the architecture, see :func:`dwsep_zoo.models.create_architecture`.

    Returns:
        A network in training mode: ``(N, in_chans, H, W)`` -> ``(N, num_classes)``.

    Raises:
        UserError: naming a value that is not possible and the choices, or the first tensor that
            does not fit.
    """
    choose(name, list_models(), "model")
    conv = create_conv(conv)
    source = weights.resolve(name, pretrained, conv.name) if pretrained else None
    if source and source.published:
        width_mult = _width_of(source.published, source.what, width_mult)
        conv = _conv_of(source.published, source.what, conv)
        options, output_stride = _options_of(source.published, output_stride, options)
    if num_classes is None:
        num_classes = len(source.class_names) if source and source.class_names else 1000
    model = build_model(
        name,
        conv=conv,
        num_classes=num_classes,
        in_chans=in_chans,
        width_mult=1.0 if width_mult is None else width_mult,
        output_stride=output_stride,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        **options,
    )
    if source:
        weights.load_into(model, source)
    return model


def check_pretrained(
    name: str,
    pretrained: str | bool | Path,
    *,
    conv: str | Mapping[str, Any] | ConvOp,
    width_mult: float | None,
) -> None:
    """Compare weights with the network that is to take them; nothing is downloaded.

    Raises:
        UserError: if they are of another network, conv type or width.
    """
    op = create_conv(conv)
    source = weights.resolve(name, pretrained, op.name)
    if source.published:
        _width_of(source.published, source.what, width_mult)
        _conv_of(source.published, source.what, op)


def _width_of(published: Published, what: str, width_mult: float | None) -> float | None:
    theirs = published.width_mult
    if None not in (theirs, width_mult) and theirs != width_mult:
        raise UserError(
            f"{what}: has width {theirs:g}, the network {width_mult:g}; use width_mult={theirs:g}"
        )
    return theirs if width_mult is None else width_mult


def _conv_of(published: Published, what: str, ours: ConvOp) -> ConvOp:
    """The weights' conv type; options at their defaults count as not given."""
    theirs = create_conv(published.options.get("conv", "depthwise_separable"))
    if ours.name != theirs.name or (ours.options and ours != theirs):
        raise UserError(f"{what}: was trained with conv={theirs}, the network has {ours}")
    return theirs


def _options_of(
    published: Published, output_stride: int, options: Mapping[str, Any]
) -> tuple[dict[str, Any], int]:
    """The user's options, completed by the weights', and the output stride.

    Dropout rates belong to the training of the weights; a stride of 32 counts as not given.
    """
    theirs = dict(published.options)
    stride = theirs.pop("output_stride", output_stride)
    for key in ("conv", "drop_rate", "drop_path_rate"):
        theirs.pop(key, None)
    given = {key: value for key, value in options.items() if value is not None}
    return {**theirs, **given}, stride if output_stride == 32 else output_stride
