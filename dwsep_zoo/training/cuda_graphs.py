"""Forward and backward pass of a network as CUDA graphs.

The kernels of a training step on a GPU can be over sooner than Python has called them: at CIFAR
size that is so for all of these networks. As a graph all are launched by one call. A graph is of
one size of images; nothing about the network may change but the values of its tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from dwsep_zoo.acceleration import hooks_of, unchanged
from dwsep_zoo.errors import first_line
from dwsep_zoo.training.out_of_memory import is_out_of_memory

log = logging.getLogger("dwsep_zoo")

Forward = Callable[[Tensor], Tensor]


class _Network(nn.Module):
    """A wrapper, because PyTorch replaces the forward of the module it captures."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def capture(network: nn.Module, x: Tensor) -> Forward:
    """Forward and backward pass for inputs like ``x``, as graphs."""
    record: Any = torch.cuda.make_graphed_callables
    options = {}
    if "capture_error_mode" in signature(record).parameters:  # torch 2.11 has none
        options["capture_error_mode"] = "thread_local"  # other threads may load batches meanwhile
    with unchanged(network):  # a few passes are made before it is recorded
        forward: Forward = record(_Network(network), (x.detach().clone(),), **options)
        return forward


def graphed_forward(network: nn.Module) -> Forward:
    """The network's forward pass, as graphs with its backward pass.

    They are recorded again when another size of images comes, or if training or freezing of some
    part begins or ends: only the last ones are kept, as graphs hold all memory of a step. Where
    that is impossible, which the log says, without gradients, and while somebody listens to a
    module, the network is called as it is.
    """
    graphs: dict[Hashable, Forward] = {}

    def forward(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or any(hooks_of(*network.modules())):
            return network(x)
        key = (x.shape, x.dtype, x.stride(), *_state(network))
        with _without_cache():
            if key not in graphs:
                graphs.clear()
                graphs[key] = _capture_or_not(network, x)
            return graphs[key](x)

    return forward


def _capture_or_not(network: nn.Module, x: Tensor) -> Forward:
    try:
        return capture(network, x)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        log.warning("training steps: not as CUDA graphs: %s", first_line(error))
        torch.cuda.synchronize()
        return network


def _state(network: nn.Module) -> Iterator[bool]:
    """The flags that select kernels: training mode and requires_grad."""
    yield from (module.training for module in network.modules())
    yield from (parameter.requires_grad for parameter in network.parameters())


def _without_cache() -> AbstractContextManager[object]:
    """Autocast that rounds the weights in every pass: in a graph there is no other time for it."""
    if not torch.is_autocast_enabled("cuda"):
        return nullcontext()
    dtype = torch.get_autocast_dtype("cuda")
    return torch.autocast("cuda", dtype=dtype, cache_enabled=False)
