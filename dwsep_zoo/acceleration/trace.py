"""The graph of a network, with the layers that kernels compute gathered in chains.

``torch.fx`` records the calls of a forward pass. Norms, convolutions and modules without children
stay whole, so that they follow their own mode; a module that cannot be recorded stays whole, too.
"""

from __future__ import annotations

import operator
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the base of all batch norms

from dwsep_zoo.acceleration.chain import Chain, Layer
from dwsep_zoo.errors import first_line
from dwsep_zoo.nn.layers import ACT_MODULES, Conv2dSame, is_depthwise, is_pointwise
from dwsep_zoo.nn.synced import SyncedBatchNorm2d
from dwsep_zoo.ops import depthwise_conv2d, pointwise_conv2d, pool_beside

_ACT_NAMES: dict[Any, str] = {module: name for name, module in ACT_MODULES.items()}
_IN_PLACE = (F.relu_, torch.relu_, "relu_")
_ACT_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", *_IN_PLACE), "relu"),
    F.relu6: "relu6",
    F.hardswish: "hard_swish",
    F.silu: "silu",
}
_FRESH = (operator.add, torch.add, operator.mul, torch.mul, torch.cat)
"""Functions whose result shares no memory with another tensor."""
_PRODUCTS = (operator.mul, torch.mul, "mul")
_lock = threading.Lock()  # torch.fx patches nn.Module while it traces


Constant = tuple[nn.Module, str, Tensor]


class Untraceable(Exception):
    """Why a network has no graph, in one line."""


class Graph(NamedTuple):
    """What :func:`trace` found.

    Attributes:
        recorded: computes exactly what the network's forward does, module by module.
        planned: the same with chains.
        chains: in order of execution.
        whole: names of the modules with children that could not be recorded, with the reason.
        constants: parameters and buffers that the forward reads by itself: their holder, name, and
            the tensor that was read.
    """

    recorded: fx.GraphModule
    planned: fx.GraphModule
    chains: list[Chain]
    whole: dict[str, str]
    constants: list[Constant]

    def of(self, model: nn.Module) -> Graph:
        """The graph for a network of the same modules."""
        return _graph_of(model, self.recorded.graph, self.whole)

    def reads_the_same(self) -> bool:
        return all(getattr(owner, name) is tensor for owner, name, tensor in self.constants)

    def why_alone(self, name: str, module: nn.Module) -> str:
        """Why a norm or a depthwise convolution is in no chain."""
        for whole, why in self.whole.items():
            if name == whole or name.startswith(f"{whole}."):
                return f"part of {whole}, which cannot be recorded: {why}"
        return f"{type(module).__name__}, or several calls"


def trace(model: nn.Module) -> Graph:
    """Record a network that maps one tensor, and plan its chains.

    Raises:
        Untraceable: if its forward cannot be recorded.
    """
    tracer = _Tracer()
    with _lock:
        try:
            graph = tracer.trace(_Root(model))
        except Exception as error:  # of any kind: the network's code met what is no tensor
            raise Untraceable(first_line(error)) from error
    return _graph_of(model, graph, tracer.whole)


def _graph_of(model: nn.Module, graph: fx.Graph, whole: dict[str, str]) -> Graph:
    root, modules, constants = _Root(model), dict[str, nn.Module](), dict[str, Constant]()
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            modules[target] = root.get_submodule(target)
        elif node.op == "get_attr":
            holder, _, name = target.rpartition(".")
            owner = root.get_submodule(holder)
            if name not in owner._parameters and name not in owner._buffers:
                raise Untraceable(f"it reads {name}, a tensor that is no parameter")
            constants[target] = owner, name, getattr(owner, name)
    attributes = {target: tensor for target, (_, _, tensor) in constants.items()}
    recorded = fx.GraphModule({**modules, **attributes}, graph)
    planned = fx.Graph()
    planned.output(planned.graph_copy(graph, {}))
    _drop_identities(planned, modules)
    _pool_beside(planned, modules)
    chains = _gather(planned, modules)
    return Graph(
        recorded,
        fx.GraphModule({**modules, **attributes, **chains}, planned),
        [*chains.values()],
        whole,
        [*constants.values()],
    )


class _Root(nn.Module):
    """Calls the network with one tensor, so that its other arguments keep their defaults."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return type(self.network).forward(self.network, x)


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.whole: dict[str, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, _BatchNorm | nn.Conv2d)
            or not any(m.children())
            or m._compiled_call_impl is not None
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        before = next(iter(reversed(self.graph.nodes)))
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            for node in reversed(self.graph.nodes):  # newest first, so none has users
                if node is before:
                    break
                self.graph.erase_node(node)
            name = self.path_of_module(m)
            self.whole[name.removeprefix("network.")] = first_line(error)
            return self.create_proxy("call_module", name, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
            raise Untraceable("gradient checkpointing")
        return super().create_node(*args, **kwargs)


def _drop_identities(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    for node in graph.nodes:
        module = modules.get(node.target) if node.op == "call_module" else None
        nothing = type(module) is nn.Identity or (
            type(module) in (nn.Dropout, nn.Dropout2d) and getattr(module, "p", 1) == 0
        )
        if nothing and len(node.args) == 1 and not node.kwargs:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _gather(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[str, Chain]:
    """Replace the longest sequences of layers by chains; return these by name."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    layers: dict[fx.Node, Layer] = {}
    for node in graph.nodes:
        layer = _layer(node, modules)
        # The order of a shared norm's updates matters, and chains move calls to their beginning.
        if layer is not None and not (layer.norm is not None and calls[node.target] > 1):
            layers[node] = layer
    chains: dict[str, Chain] = {}
    for first in [*layers]:
        if first not in layers:  # in a chain already
            continue
        nodes = [first]
        while len(nodes[-1].users) == 1 and (after := next(iter(nodes[-1].users))) in layers:
            nodes.append(after)
        if _writes(first, modules) and not _is_own(first.args[0], modules):
            del layers[nodes.pop(0)]  # it changes a tensor that others may see
        found = [layers.pop(node) for node in nodes]
        if found:
            chains[f"chain{len(chains)}"] = Chain(found)
            with graph.inserting_before(nodes[0]):
                new = graph.call_module(f"chain{len(chains) - 1}", (nodes[0].args[0],))
            nodes[-1].replace_all_uses_with(new)
            for node in reversed(nodes):
                graph.erase_node(node)
    return chains


def _layer(node: fx.Node, modules: Mapping[str, nn.Module]) -> Layer | None:
    """The layer that a node computes from one tensor, its first argument."""
    if not node.args or not isinstance(node.args[0], fx.Node) or len(node.all_input_nodes) != 1:
        return None
    if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
        name = str(node.target)
        return _layer_of(name.removeprefix("network."), modules[name])
    act = None if node.op == "call_module" else _ACT_FUNCTIONS.get(node.target)
    if act is None or len(node.args) > 1 or not set(node.kwargs) <= {"inplace"}:
        return None
    call: Any = getattr(Tensor, node.target) if isinstance(node.target, str) else node.target
    return Layer(node.name, partial(call, **node.kwargs), act=act)


def _layer_of(name: str, module: nn.Module) -> Layer | None:
    act = _ACT_NAMES.get(type(module))
    if act is not None:
        return Layer(name, module, act=act)
    if type(module) in (nn.BatchNorm2d, SyncedBatchNorm2d):
        assert isinstance(module, nn.BatchNorm2d)
        return Layer(name, module, norm=module)
    if isinstance(module, nn.BatchNorm2d) and _is_timm_norm_act(module):
        inner = module.get_submodule("act")
        act = "identity" if type(inner) is nn.Identity else _ACT_NAMES.get(type(inner))
        return None if act is None else Layer(name, module, norm=module, act=act)
    if type(module) in (nn.Conv2d, Conv2dSame) and is_depthwise(module) and _is_square(module):
        own = module if type(module) is nn.Conv2d else None
        return Layer(name, partial(_convolve_depthwise, module), depthwise=own)
    if type(module) is nn.Conv2d and is_pointwise(module):
        return Layer(name, partial(_convolve_pointwise, module), pointwise=module)
    return None


def _is_square(conv: nn.Conv2d) -> bool:
    """Whether height and width have the same kernel, stride and zeros around them."""
    return (
        conv.kernel_size[0] == conv.kernel_size[1]
        and conv.stride[0] == conv.stride[1]
        and not isinstance(conv.padding, str)
        and conv.padding[0] == conv.padding[1]
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
    )


def _is_timm_norm_act(module: nn.Module) -> bool:
    """Whether it is timm's ``BatchNormAct2d``, a norm with its activation, without dropout."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("timm.layers.norm_act", "BatchNormAct2d") and type(
        module.get_submodule("drop")
    ) is nn.Identity


def _writes(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether an activation changes its input."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) in _ACT_NAMES and bool(getattr(module, "inplace", False))
    return node.target in _IN_PLACE or bool(node.kwargs.get("inplace"))


def _is_own(node: Any, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a tensor has one user and its own memory."""
    assert isinstance(node, fx.Node)
    if len(node.users) > 1:
        return False
    if node.op == "call_module":
        made = modules.get(str(node.target))
        return made is None or isinstance(made, nn.Conv2d | nn.MaxPool2d | _BatchNorm)
    return node.op == "call_function" and node.target in _FRESH


def _convolve_depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    if isinstance(conv, Conv2dSame):
        x = conv.pad(x)
    return depthwise_conv2d(x, conv.weight, conv.stride[0], int(conv.padding[0]), conv.bias)


def _convolve_pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return pointwise_conv2d(x, conv.weight, conv.bias)


def _pool_beside(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Give squeeze-and-excites the cheaper gradient of means that are used beside their tensor."""
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not _is_global_mean(node, modules):
            continue
        order = {other: i for i, other in enumerate(graph.nodes)}
        later = [user for user in source.users if order[user] > order[node]]
        if not later or not all(_multiplies(user) for user in later):
            continue
        with graph.inserting_before(node):
            both = graph.call_function(pool_beside, (source,))
            beside = graph.call_function(operator.getitem, (both, 0))
            means = graph.call_function(operator.getitem, (both, 1))
        for user in later:
            user.replace_input_with(source, beside)
        node.replace_all_uses_with(means)
        graph.erase_node(node)


def _multiplies(node: fx.Node) -> bool:
    return node.op != "call_module" and node.target in _PRODUCTS


def _is_global_mean(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node computes ``(N, C, H, W)`` -> ``(N, C, 1, 1)`` means."""
    if node.op == "call_module":
        module = modules.get(str(node.target))
        return type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1))
    if node.target is F.adaptive_avg_pool2d:
        return node.args[1:] in ((1,), ((1, 1),))
    if node.target not in ("mean", torch.mean):
        return False
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keeps = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    return keeps is True and isinstance(dims, tuple | list) and set(dims) in ({2, 3}, {-2, -1})
