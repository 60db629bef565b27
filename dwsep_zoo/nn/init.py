"""Weight initialisation of the reference implementations.

Every layer has its own generator, seeded by its name and one draw from the global one. Layers that
two networks share therefore start equal whatever lies between them, as a comparison needs, and
several threads can initialise a large network.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Generator, Tensor, nn

CLASSIFIER = "classifier"
Draw = Callable[[Tensor, Generator], object]


def init_mobilenet(model: nn.Module) -> None:
    """Truncated normal with deviation 0.09 in every layer: TF-Slim's MobileNets V1 to V3."""

    def draw(w: Tensor, generator: Generator) -> None:
        nn.init.trunc_normal_(w, 0.0, 0.09, -0.18, 0.18, generator)

    _init(model, draw, draw)


def init_efficientnet(model: nn.Module) -> None:
    """Normal with variance 2 / fan-out; classifier uniform in +-1 / sqrt(classes).

    A hidden layer behind the pooling is a 1 x 1 convolution in the reference.

    The fan-out of a depthwise filter has one output channel, as in TensorFlow's TPU code.
    """

    def conv(w: Tensor, generator: Generator) -> None:
        fan_out = w.shape[0] * w[0, 0].numel()
        if w.shape[1] == 1:
            fan_out //= w.shape[0]
        nn.init.normal_(w, 0.0, math.sqrt(2 / fan_out), generator)

    def linear(w: Tensor, generator: Generator) -> None:
        # The formula is for 1000 classes; with 10 it would saturate the first softmax.
        bound = 1 / math.sqrt(max(1000, w.shape[0]))
        nn.init.uniform_(w, -bound, bound, generator)

    _init(model, conv, linear)


def init_xception(model: nn.Module) -> None:
    """Glorot uniform in every layer, the default of Keras, which the paper uses."""

    def draw(w: Tensor, generator: Generator) -> None:
        nn.init.xavier_uniform_(w, 1.0, generator)

    _init(model, draw, draw)


def _init(model: nn.Module, conv: Draw, linear: Draw) -> None:
    seed = int(torch.randint(2**31, (), device="cpu"))

    def fill(item: tuple[str, nn.Module]) -> None:
        name, module = item
        if isinstance(module, nn.Conv2d | nn.Linear):
            generator = Generator(module.weight.device)
            generator.manual_seed(seed ^ zlib.crc32(name.encode()))
            (linear if name == CLASSIFIER else conv)(module.weight, generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, model.named_modules()))
