"""Weights into networks."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dwsep_zoo.errors import UserError
from dwsep_zoo.models import ConvNet, build_model
from dwsep_zoo.weights.convert import State, from_layout
from dwsep_zoo.weights.layouts import Layout, recognise
from dwsep_zoo.weights.sources import Source, find, resolve

log = logging.getLogger("dwsep_zoo")


def preprocessing(
    model: str, pretrained: str | bool | Path, conv: str = "depthwise_separable"
) -> dict[str, Any]:
    """The image_size, mean, std and the like of the weights, as far as known.

    Only the weights of a run's folder are read; nothing is downloaded.
    """
    return resolve(model, pretrained, conv).preprocessing


def output_stride_of(
    model: str, pretrained: str | bool | Path, conv: str = "depthwise_separable"
) -> int | None:
    """The output stride that weights were trained with, if they say so; nothing is downloaded."""
    published = resolve(model, pretrained, conv).published
    stride = published.options.get("output_stride") if published else None
    return stride if isinstance(stride, int) else None


def load_into(model: ConvNet, source: Source) -> None:
    """Fill a network; a classifier or first convolution of another size is adapted and logged.

    The network is not changed if anything does not fit.

    Raises:
        UserError: naming the first tensor that does not fit.
    """
    state = source.read()
    layout = _layout(state, source.what)
    if source.published is None:
        _say_assumptions(model, source.what)
    with torch.device("meta"):
        args = {**model.build_args, **_head_and_stem(state, layout, model)}
        pattern = build_model(**args)
    converted = from_layout(state, layout, pattern, source.what)
    _adapt_classifier(converted, model, source.what)
    _adapt_stem(converted, model, source.what)
    model.load_state_dict(converted)
    model.default_cfg = {**model.default_cfg, **_description(source, args, model)}


def _say_assumptions(model: ConvNet, what: str) -> None:
    """Log what is assumed about an unknown file, and the options that say otherwise."""
    cfg = model.default_cfg
    eps = next(m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    log.info(
        "%s: not a published file that is known here; assumed: padding=%s bn_eps=%g, images with "
        "mean=%s std=%s; else set padding, bn_eps, and the mean and std of the data",
        what,
        model.build_args.get("padding") or "symmetric",
        eps,
        list(cfg["mean"]),
        list(cfg["std"]),
    )


def _description(source: Source, theirs: dict[str, Any], model: ConvNet) -> dict[str, Any]:
    """The weights' images and classes, except for what differs in this network."""
    found = dict(source.preprocessing)
    size, chans = found.pop("image_size", None), model.build_args["in_chans"]
    if theirs["in_chans"] != chans:
        found = {key: value for key, value in found.items() if key not in ("mean", "std")}
    if size:
        found["input_size"] = (chans, size, size)
        found["pool_size"] = (-(-size // model.output_stride),) * 2
    if source.class_names and theirs["num_classes"] == model.num_classes:
        found["label_names"] = list(source.class_names)
    return found


def load(path: str | Path) -> ConvNet:
    """Build a network and load it.

    Args:
        path: the folder of a run, a checkpoint, a saved folder, or the name of published weights:
            a package, ``mobilenet_v2.IMAGENET1K_V1``, a timm or ``hf-hub:`` id.

    Returns:
        The network in evaluation mode, with ``class_names`` and, in ``default_cfg``, the
        preprocessing of its images.

    Raises:
        UserError: if it does not exist, or does not describe its network.
    """
    source = find(path)
    published = source.published
    if published is None:
        raise UserError(
            f"{path}: does not say which network it is; use create_model(name, pretrained=...)"
        )
    state = source.read()
    args = {"width_mult": published.width_mult or 1.0, **published.options}
    with torch.device("meta"):
        pattern = build_model(published.model, **args)
    sizes = _head_and_stem(state, _layout(state, source.what), pattern)
    model = build_model(published.model, **{**args, "num_classes": 0, **sizes})
    load_into(model, replace(source, read=lambda: state))
    model.class_names = list(source.class_names)
    return model.eval()


def _layout(state: State, what: str) -> Layout:
    """Raises UserError for tensors with unknown names."""
    layout = recognise(state)
    if layout is None:
        first = next(iter(state))
        raise UserError(f"{what}: the names of its tensors are unknown, such as {first!r}")
    return layout


def _head_and_stem(state: State, layout: Layout, model: ConvNet) -> dict[str, int]:
    """num_classes and in_chans of foreign weights."""
    names = dict(layout(model, list(state)))
    found = {}
    classifier = state.get(f"{names.get('classifier')}.weight")
    found["num_classes"] = 0 if classifier is None else len(classifier)
    stem = state.get(f"{names['stem.0.conv']}.weight")
    if stem is not None and stem.ndim == 4:
        found["in_chans"] = stem.shape[1]
    return found


def _adapt_classifier(state: State, model: ConvNet, what: str) -> None:
    wanted = model.state_dict()
    classes = len(state["classifier.weight"]) if "classifier.weight" in state else 0
    if classes == model.num_classes:
        return
    for name in ("classifier.weight", "classifier.bias"):
        state.pop(name, None)
        if name in wanted:  # zero-initialised, so that it does not destroy the features
            state[name] = torch.zeros_like(wanted[name])
    if classes:
        log.info("%s: its classifier of %d classes is left out", what, classes)
    else:
        log.info("%s: has no classifier", what)


def _adapt_stem(state: State, model: ConvNet, what: str) -> None:
    """timm's rule: fewer channels are summed, more are repeated, so that activations keep size."""
    weight = state["stem.0.conv.weight"]
    in_chans = model.build_args["in_chans"]
    if weight.shape[1] == in_chans:
        return
    if weight.shape[1] != 3:
        raise UserError(f"{what}: takes {weight.shape[1]} channels, the network {in_chans}")
    from timm.models import adapt_input_conv

    state["stem.0.conv.weight"] = adapt_input_conv(in_chans, weight)
    log.info("%s: its first convolution is adapted from %d channels", what, weight.shape[1])
