"""Weight initialisation of the reference implementations."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn


def init_mobilenet(model: nn.Module) -> None:
    """Truncated normal of deviation 0.09 in every layer: TF-Slim's MobileNets V1, V2 and V3."""
    _init(model, lambda w: _truncated_normal(w, 0.09), lambda w: _truncated_normal(w, 0.09))


def init_efficientnet(model: nn.Module) -> None:
    """Normal with variance 2 / fan-out; the classifier uniform in +-1 / sqrt(classes).

    The fan-out of a depthwise filter counts its one output channel, as in TensorFlow's TPU code.
    """

    def conv(w: Tensor) -> None:
        fan_out = w.shape[0] * w[0, 0].numel()
        if w.shape[1] == 1:
            fan_out //= w.shape[0]
        nn.init.normal_(w, 0.0, math.sqrt(2 / fan_out))

    def linear(w: Tensor) -> None:
        nn.init.uniform_(w, -1 / math.sqrt(w.shape[0]), 1 / math.sqrt(w.shape[0]))

    _init(model, conv, linear)


def init_xception(model: nn.Module) -> None:
    """Glorot uniform in every layer: Keras' default, in which the paper's network is written."""
    _init(model, nn.init.xavier_uniform_, nn.init.xavier_uniform_)


def _truncated_normal(w: Tensor, std: float) -> None:
    nn.init.trunc_normal_(w, 0.0, std, -2 * std, 2 * std)


def _init(
    model: nn.Module, conv: Callable[[Tensor], object], linear: Callable[[Tensor], object]
) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            (conv if isinstance(module, nn.Conv2d) else linear)(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
