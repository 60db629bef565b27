"""What tests of whole networks share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dwsep_zoo import list_convs, list_models

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
"""One model a family: these meet every conv type by default, all others in the slow tests."""


def model_conv_pairs() -> list[Any]:
    """Every model with every conv type, as parameters of a test."""
    return [
        pytest.param(
            name,
            conv,
            marks=[] if name in REPRESENTATIVES or conv == list_convs()[0] else pytest.mark.slow,
        )
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
