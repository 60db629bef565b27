"""Networks that train with this project's kernels: :func:`accelerate`."""

from __future__ import annotations

import copy
import functools
import logging
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.nn.modules.batchnorm import _BatchNorm  # the base of all batch norms
from torch.utils._python_dispatch import is_in_torch_dispatch_mode  # not public
from torch.utils._pytree import tree_leaves

from dwsep_zoo.acceleration.chain import Notes
from dwsep_zoo.acceleration.trace import Graph, Untraceable, trace
from dwsep_zoo.errors import first_line
from dwsep_zoo.nn.layers import is_depthwise
from dwsep_zoo.ops import plain

log = logging.getLogger("dwsep_zoo")

KEPT = 4  # plans of a network: training or not, parts of it frozen or not
FEW = 8  # steps; plans of fewer were not worth making
Network = TypeVar("Network", bound=nn.Module)


def accelerate(model: Network) -> Network:
    """Let a network train with this project's kernels: any network of PyTorch modules.

    At the first step, one pass of ``torch.fx`` finds expansions, batch norms, activations and
    depthwise convolutions that follow one another, and from then on fused operators compute them.
    Parameters, state dict, outputs and running statistics stay as they are, to rounding. Copies of
    the network are accelerated too.

    The network computes as before without gradients, while a hook observes one of its modules,
    under ``torch.compile``, export, tracing and the transforms of ``torch.func``, and where its
    forward pass cannot be recorded, which the log says. A network whose modules were changed is
    recorded again at its next step; changes inside a list or a dict go unnoticed. Side effects of a
    forward pass, such as printing, happen only while it is recorded.

    The kernels are for channels_last, in float32 and bfloat16::

        model = timm.create_model("mobilenetv2_100").to(memory_format=torch.channels_last)
        dwsep_zoo.accelerate(model)

    Args:
        model: maps one tensor, ``(N, C, H, W)``; its ``forward`` is replaced in place.

    Returns:
        ``model`` itself.
    """
    if _plans(model) is not None:
        return model
    why = ""
    if isinstance(model, torch.jit.ScriptModule):
        why = "it is scripted"
    elif "forward" in model.__dict__:
        why = "its forward was replaced before"
    if why:
        log.warning("accelerate: %s stays as it is: %s", type(model).__name__, why)
        return model
    model.__dict__[_ATTRIBUTE] = Plans()
    model.forward = types.MethodType(_planned(type(model)), model)
    return model


def explain(model: nn.Module, x: Tensor) -> Notes:
    """Name the layers that kernels compute together for an input, and the others with the reason.

    Args:
        model: an accelerated network; it stays as it is.
        x: ``(N, C, H, W)``.
    """
    plans = _plans(model)
    assert plans is not None, "the network is not accelerated"
    with torch.enable_grad(), unchanged(model):
        plan = plans.find(model, x)
        if plan is None or plan.graph is None:
            return Notes([], {"": plan.why if plan else "a hook observes it"})
        notes = plan.note()
        plan.forward(x.detach())
        return plan.finish(notes)


def planned_forward(model: nn.Module, x: Tensor) -> Callable[..., Any]:
    """The forward pass of a network for a compiler, with this project's convolutions if planned.

    Args:
        model: if it is not accelerated, its own forward is returned.
        x: an input, ``(N, C, H, W)``.
    """
    plans = _plans(model)
    plan = None if plans is None else plans.find(model, x)
    return model.forward if plan is None or plan.graph is None else plan.graph.planned.forward


def hooks_of(*modules: nn.Module) -> list[Any]:
    """The collections of hooks that observe these modules, and those that observe all modules."""
    return [hooks for module in modules for hooks in _hooks(module)] + [
        global_hooks._global_forward_hooks,
        global_hooks._global_forward_pre_hooks,
        global_hooks._global_backward_hooks,
        global_hooks._global_backward_pre_hooks,
    ]


_ATTRIBUTE = "_dwsep_plans"


def _plans(model: nn.Module) -> Plans | None:
    return model.__dict__.get(_ATTRIBUTE)


def _planned(kind: type[nn.Module]) -> Callable[..., Any]:
    """The forward of a network of this kind with plans."""

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return type(self).forward(self, *args, **kwargs)
        return self.__dict__[_ATTRIBUTE].forward(self, *args, **kwargs)

    return forward


class Plan:
    """The planned forward pass of a network in one state of its modules.

    Args:
        model: the network.
        x: an input, which checks that the graph is the network's.
    """

    def __init__(self, model: nn.Module, x: Tensor):
        self.graph: Graph | None = None
        self.why = ""  # there is no graph
        self.steps = 0
        self.modules = [*model.modules()]
        self.kinds = [type(module) for module in self.modules]
        # Equality begins with identity, which is quick. The children's dicts change in place.
        self.attributes = [dict(module.__dict__) for module in self.modules]
        self.children = [dict(module._modules) for module in self.modules]
        self.holders = [d for m in self.modules for d in (m._parameters, m._buffers) if d]
        self.tensors: Any = None
        self.hooks = hooks_of(*self.modules[1:])  # the network's own are called before its forward
        try:
            self.graph = _checked_graph(model, x.detach())
        except Untraceable as error:
            self.why = str(error)

    def holds(self) -> bool:
        """Whether the network is still as it was when the plan was made."""
        return (
            [*map(type, self.modules)] == self.kinds
            and _are_same([module.__dict__ for module in self.modules], self.attributes)
            and [module._modules for module in self.modules] == self.children
            and (self.graph is None or self.graph.reads_the_same())
        )

    def forward(self, *args: Any) -> Any:
        """Call the planned network; its chains look at their layers anew if a tensor changed."""
        assert self.graph is not None
        tensors = [t for holder in self.holders for t in holder.values() if t is not None]
        state = (
            [*map(id, tensors)],
            [*map(Tensor.data_ptr, tensors)],
            [tensor.requires_grad for tensor in tensors],
        )
        if state != self.tensors:
            self.tensors = state
            for chain in self.graph.chains:
                chain.paths.clear()
        self.steps += 1
        return self.graph.planned.forward(*args)

    def is_heard(self) -> bool:
        """Whether a hook observes a module inside the network."""
        return any(self.hooks)

    def note(self) -> Notes:
        """Let the next forward pass note what it does."""
        assert self.graph is not None
        notes = Notes([], {})
        for chain in self.graph.chains:
            chain.notes = notes
        return notes

    def finish(self, notes: Notes) -> Notes:
        """Stop noting, and add the layers that are in no chain."""
        assert self.graph is not None
        for chain in self.graph.chains:
            chain.notes = None
        known = {name for names in notes.fused for name in names} | {*notes.left}
        for name, module in self.modules[0].named_modules():
            if name not in known and (isinstance(module, _BatchNorm) or is_depthwise(module)):
                notes.left[name] = self.graph.why_alone(name, module)
        return notes


class Plans:
    """Calls a network by its plan where it trains, and as it is otherwise."""

    def __init__(self) -> None:
        self.kept: list[Plan] = []  # the newest first
        self.given_up = False

    def __deepcopy__(self, memo: Any) -> Plans:
        return Plans()

    def __reduce__(self) -> Any:
        return Plans, ()

    def forward(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.given_up or len(args) != 1 or kwargs or not _may_plan(args[0]):
            return type(model).forward(model, *args, **kwargs)
        plan = self.find(model, args[0])
        if plan is None or plan.graph is None or plan.is_heard():
            return type(model).forward(model, *args)
        if plan.steps > 0:
            return plan.forward(*args)
        notes = plan.note()
        result = plan.forward(*args)
        log.info("training steps: %s", summary(model, plan.finish(notes)))
        return result

    def find(self, model: nn.Module, x: Tensor) -> Plan | None:
        """Return the plan of the network as it is now, and make one where there is none.

        While a hook observes a module, there may be none.
        """
        for plan in self.kept:
            if plan.holds():
                return plan
        if any(hooks_of(*[*model.modules()][1:])):
            return None
        if len(self.kept) == KEPT and all(plan.steps < FEW for plan in self.kept):
            self.given_up = True
            log.warning("accelerate: its modules change from step to step, so it stays as it is")
        plan = Plan(model, x)
        if plan.why:
            log.warning("accelerate: %s stays as it is: %s", type(model).__name__, plan.why)
        self.kept = [plan, *self.kept][:KEPT]
        return plan


def summary(model: nn.Module, notes: Notes) -> str:
    """Say in one line how many of a network's layers kernels compute, and why not the others."""
    fused = {name for names in notes.fused for name in names}
    modules = dict(model.named_modules())
    norms = {name for name, module in modules.items() if isinstance(module, _BatchNorm)}
    convs = {name for name, module in modules.items() if is_depthwise(module)}
    reasons = sorted({why for name, why in notes.left.items() if name in norms | convs | {""}})
    return (
        f"kernels compute {len(norms & fused)} of {len(norms)} norms and {len(convs & fused)} of "
        f"{len(convs)} depthwise convolutions with their neighbours"
        + (f"; the others: {'; '.join(reasons)}" if reasons else "")
    )


def _may_plan(x: object) -> bool:
    return (
        type(x) is Tensor
        and x.device.type in ("cpu", "cuda")
        and torch.is_grad_enabled()
        and not plain(x)
        and not is_in_torch_dispatch_mode()  # a mode may count operators
    )


def _hooks(module: nn.Module) -> Iterator[Any]:
    yield module._forward_hooks
    yield module._forward_pre_hooks
    yield module._backward_hooks
    yield module._backward_pre_hooks


def _checked_graph(model: nn.Module, x: Tensor) -> Graph:
    """Record a network, and see that the graph computes what the network does, bit by bit.

    Some code takes another path without an error when it is recorded, or keeps something that later
    steps need. A copy of the network is recorded, which nothing can change for the caller.

    Raises:
        Untraceable: if it does not, or if the forward changes attributes.
    """
    try:
        twin = copy.deepcopy(model)
    except Exception as error:  # of any attribute
        raise Untraceable(f"it cannot be copied: {first_line(error)}") from error
    before = [_contents(module) for module in twin.modules()]
    graph = trace(twin)
    results = []
    for run in (functools.partial(type(twin).forward, twin), graph.recorded.forward):
        with unchanged(twin), torch.no_grad(), _uncached(x.device.type):
            try:
                results.append(tree_leaves(run(x)))
            except Exception as error:
                if not results:
                    raise  # the network itself refuses this input
                raise Untraceable(f"its recorded graph fails: {first_line(error)}") from error
    if not _are_same(before, [_contents(module) for module in twin.modules()]):
        raise Untraceable("its forward changes attributes")
    if not all(map(_are_same, *results)) or len(results[0]) != len(results[1]):
        raise Untraceable("its recorded graph computes something else")
    return graph.of(model)


def _contents(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module, and what its lists and dicts hold."""
    return {
        name: copy.copy(value) if isinstance(value, list | dict | set) else value
        for name, value in module.__dict__.items()
    }


def _are_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one.nan_to_num(), other.nan_to_num())
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # arrays in it are compared
        return False


def _uncached(device: str) -> AbstractContextManager[object]:
    """Autocast as it is, without a cache: weights cast here would have no gradient afterwards."""
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Give the statistics of norms and the random numbers back as they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
