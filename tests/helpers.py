"""What tests of whole networks and of whole runs share."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dwsep_zoo.ops
from dwsep_zoo import list_convs, list_models
from dwsep_zoo.config import compose_settings
from dwsep_zoo.schema.settings import Recipe, Settings

REPRESENTATIVES = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v4_conv_small",
    "xception",
    "xception41",
    "efficientnet_b0",
    "efficientnet_lite0",
)
"""One model a family."""
SMALL = (
    "model=mobilenet_v1_shallow",
    "model.width_mult=0.125",
    "trainer.max_epochs=2",
    "trainer.precision=32-true",
    "trainer.limit_train_batches=4",
    "data.batch_size=32",
    "profile.roofline=false",  # takes longer than the training
    "profile.patience=0",
    "logger.pictures=false",  # they take longer than the training
    "recipe.norm_statistics=running",  # precise ones take as long as the training
)
"""Overrides of a run that takes a second."""
KERNELS = ("triton_common", "triton_depthwise", "triton_norm", "triton_expand")
"""Modules with Triton kernels."""


@cache
def composed(*overrides: str) -> Settings:
    """The settings of a run that is never made."""
    return compose_settings([*overrides, "paths.output_dir=unused"])


def recipe(**changes: object) -> Recipe:
    """The default recipe with other values."""
    return composed().recipe.replace(**changes)


def load_kernels_again(patch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules with kernels once more, each with the new ones before it.

    Triton takes TRITON_INTERPRET as it decorates a kernel, and the modules may be imported.
    """
    found: dict[str, ModuleType] = {}
    for name in KERNELS:
        full = f"dwsep_zoo.ops.{name}"
        spec = importlib.util.find_spec(full)
        assert spec is not None
        assert spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, full, found[name])
        patch.setattr(dwsep_zoo.ops, name, found[name], raising=False)
        spec.loader.exec_module(found[name])
    return SimpleNamespace(**found)


def slow_unless(quick: bool) -> Any:
    """The mark of a test that is a quick one under a condition."""
    return () if quick else pytest.mark.slow


def pairwise(*values: Sequence[Any]) -> list[Any]:
    """The product of three or more lists, as parameters of a test; every other one is quick.

    Any two values of two lists meet in a quick one.
    """
    places = itertools.product(*(range(len(list_)) for list_ in values))
    return [
        pytest.param(*chosen, marks=slow_unless(sum(place) % 2 == 0))
        for place, chosen in zip(places, itertools.product(*values), strict=True)
    ]


def models() -> list[Any]:
    """Every model, as parameter of a test; only the representatives are quick ones."""
    return [
        pytest.param(name, marks=slow_unless(name in REPRESENTATIVES)) for name in list_models()
    ]


def model_conv_pairs(*, costly: bool = False) -> list[Any]:
    """Every model with every conv type, as parameters of a test; most of them are slow ones.

    By default, the representatives meet the default conv type, and MobileNetV2 all of them. With
    ``costly``, there are two pairs, of networks with few layers: one has shortcuts and gates.
    """
    default = list_convs()[0]
    if costly:
        quick = {("mobilenet_v3_small", default), ("mobilenet_v1_shallow", "mixed")}
    else:
        quick = {(name, default) for name in REPRESENTATIVES}
        quick |= {("mobilenet_v2", conv) for conv in list_convs()}
    return [
        pytest.param(name, conv, marks=slow_unless((name, conv) in quick))
        for name in list_models()
        for conv in list_convs()
    ]


def calibrate(model: nn.Module, x: Tensor) -> nn.Module:
    """Give the norms the statistics of ``x``, so that what comes out depends on what goes in.

    With a random network's own statistics, 0 and 1, activations explode or vanish, and then any
    two networks look alike.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def last_weights(run: Path) -> dict[str, Tensor]:
    """With which a run ended."""
    path = run / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


def different(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of the weights that are not the same, bit for bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
