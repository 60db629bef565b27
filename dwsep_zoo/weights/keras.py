"""Keras' files: ``.keras``, ``.weights.h5`` and the older ``.h5`` of keras.applications.

Newer files name layers by their class and a counter, older ones by names of the author's. Both keep
their order, so tensors are called here by class and number: ``conv2d.0.weight`` is the first dense
convolution's. Kernels are turned into PyTorch's order of axes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dwsep_zoo.errors import UserError, install_line

Arrays = list[Any]

PREPROCESSING = ("normalization", "rescaling")
"""Layers that are no part of the network: what they do travels as the weights' preprocessing."""

NORM = ("weight", "bias", "running_mean", "running_var")


def read_keras(path: Path) -> dict[str, Tensor]:
    """The tensors of a Keras file, by class and number of their layer.

    Raises:
        UserError: if the file is damaged, or h5py is not installed.
    """
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(f"{path}: reading it takes h5py: {install_line('keras')}") from error
    try:
        file: Any = path
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                file = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(file, "r") as content:
            layers = list(_old_layers(content) if _is_old(content) else _new_layers(content))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged or cut off") from error
    state: dict[str, Tensor] = {}
    seen: Counter[str] = Counter()
    for kind, arrays in layers:
        if kind not in PREPROCESSING and arrays:
            state.update(_tensors(f"{kind}.{seen[kind]}", kind, arrays, path))
            seen[kind] += 1
    return state


def _new_layers(content: Any) -> Iterator[tuple[str, Arrays]]:
    """Keras 3: ``layers/batch_normalization_10/vars/0``, the counter being the order."""
    found = []
    for name, layer in content["layers"].items():
        kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()  # type: ignore[union-attr]
        variables = layer.get("vars", {})
        arrays = [variables[key][()] for key in sorted(variables, key=int)]
        found.append((kind, int(number or 0), arrays))
    for kind, _, arrays in sorted(found, key=lambda item: item[:2]):
        yield kind, arrays


def _is_old(content: Any) -> bool:
    return "layer_names" in content.attrs or "model_weights" in content


def _old_layers(content: Any) -> Iterator[tuple[str, Arrays]]:
    """Keras 2: groups by the author's names, whose order and variables are listed.

    A file of a whole model says the layers' classes; in one of weights alone, their names do.
    """
    config = json.loads(content.attrs.get("model_config", "{}")).get("config", {})
    depthwise = {
        layer["config"]["name"]
        for layer in config.get("layers", [])
        if layer["class_name"] == "DepthwiseConv2D"
    }
    content = content.get("model_weights", content)
    for name in content.attrs["layer_names"]:
        group = content[name]
        names = [str(_text(n)) for n in group.attrs["weight_names"]]
        arrays = [group[n][()] for n in names]
        if not arrays:
            continue
        leaves = [re.sub(r":\d+$", "", n).rsplit("/", 1)[-1] for n in names]
        if "pointwise_kernel" in leaves:
            kind = "separable_conv2d"
        elif "depthwise_kernel" in leaves or _text(name) in depthwise:
            kind = "depthwise_conv2d"
        elif "moving_mean" in leaves:
            kind = "batch_normalization"
        elif "count" in leaves:
            kind = "normalization"
        else:
            kind = "conv2d" if arrays[0].ndim == 4 else "dense"
        yield kind, arrays


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _tensors(name: str, kind: str, arrays: Arrays, path: Path) -> dict[str, Tensor]:
    tensors = [torch.from_numpy(array.copy()) for array in arrays]
    if kind == "batch_normalization" and len(tensors) == 4:
        return {f"{name}.{leaf}": t for leaf, t in zip(NORM, tensors, strict=True)}
    if kind == "separable_conv2d":
        depthwise, pointwise, *bias = tensors
        named = {
            f"{name}.depthwise.weight": _depthwise(depthwise),
            f"{name}.pointwise.weight": pointwise.permute(3, 2, 0, 1),
        }
        return {**named, **({f"{name}.pointwise.bias": bias[0]} if bias else {})}
    if kind in ("conv2d", "depthwise_conv2d", "dense"):
        kernel, *bias = tensors
        if kind == "dense":
            weight = kernel.T
        else:
            weight = _depthwise(kernel) if kind != "conv2d" else kernel.permute(3, 2, 0, 1)
        return {f"{name}.weight": weight, **({f"{name}.bias": bias[0]} if bias else {})}
    raise UserError(f"{path}: {name}: layers of this kind are in none of these networks")


def _depthwise(kernel: Tensor) -> Tensor:
    """(k, k, C, D) -> (C D, 1, k, k); output channel c D + d, as PyTorch's groups have it."""
    k1, k2, chans, multiplier = kernel.shape
    return kernel.permute(2, 3, 0, 1).reshape(chans * multiplier, 1, k1, k2)
