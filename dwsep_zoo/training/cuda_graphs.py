"""Training steps as CUDA graphs.

The kernels of a training step on a GPU can be over sooner than Python has called them: at CIFAR
size that is so for all of these networks. As a graph all of a step, from the raw pictures to the
new weights, is launched by one call. A graph is of one size of batches; nothing may change but the
values of the tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dwsep_zoo.acceleration import hooks_of
from dwsep_zoo.errors import first_line
from dwsep_zoo.training.out_of_memory import is_out_of_memory

log = logging.getLogger("dwsep_zoo")

WARM_UP = 3
"""Steps of a kind before one is recorded. They make the optimizer's state, compile kernels and
choose among them."""

Step = Callable[[], object]


class Recorder(Protocol):
    """How a step is recorded; a test has one that needs no GPU."""

    def aside(self, step: Step) -> None:
        """Run a step where steps are recorded."""

    def record(self, step: Step) -> Step:
        """Record the kernels of a step, without running them, and return what launches them."""


class CudaRecorder:
    """Records on a stream of its own, on which the steps before ran too.

    Autograd adds gradients on the stream where a parameter was first used.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def aside(self, step: Step) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            step()
        torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, step: Step) -> Step:
        graph = torch.cuda.CUDAGraph()
        # Other threads may load batches meanwhile.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            step()
        return graph.replay


class StepGraph:
    """Runs the steps of a training, after the first ones by replaying a recorded step.

    The first :data:`WARM_UP` steps are run as they are; they are part of the training. A new kind
    or size of batches, and a change that :meth:`look` finds, begin this anew. Only the last graph
    is kept, as it holds all memory of a step. Where recording is impossible, which the log says,
    and while somebody listens to a module, the steps stay as they are.

    Args:
        network: the one that is trained; its tensors, modes and hooks are looked at.
        optimizer: that of the network.
        whole: whether the optimizer's step is part of the recorded ones. Its rates are tensors
            then, so that the graph sees those of each step.
        recorder: by default CUDA's.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        *,
        whole: bool,
        recorder: Recorder | None = None,
    ):
        self.network = network
        self.optimizer = optimizer
        self.whole = whole
        self.recorder = recorder or CudaRecorder()
        self.possible = True
        self.replaying = False  # while Lightning is told about a step
        self.rates = [
            torch.zeros((), device=group["params"][0].device) for group in optimizer.param_groups
        ]
        self.clear()
        optimizer.register_load_state_dict_post_hook(lambda _: self.clear())

    def clear(self) -> None:
        """Forget the graph; its memory is free then."""
        self.kind: Hashable = None
        self.steps = 0  # of this kind
        self.replay: Step | None = None
        self.inputs: list[Tensor] = []
        self.gradients: list[tuple[Tensor, Tensor]] = []
        self.state: Hashable = None

    def look(self) -> None:
        """Forget the graph if the network is another one than when it was recorded.

        It takes longer than a small step, so a training does it once an epoch.
        """
        if self.replay and self.state != self._look():
            self.clear()

    def run(
        self,
        kind: Hashable,
        batch: Iterable[Tensor],
        step: Step,
        tell: Step = lambda: None,
    ) -> None:
        """Run a step.

        Args:
            kind: what a graph depends on, besides the sizes of the batch.
            batch: the tensors that the step reads and that others will take the place of.
            step: computes gradients, and if ``whole`` steps with the optimizer.
            tell: called after a step that was replayed, with ``replaying`` true: the Python of
                ``step`` was not run.
        """
        given = [*batch]
        kind = (kind, *((x.shape, x.stride(), x.dtype) for x in given))
        if kind != self.kind:
            self.clear()
            self.kind = kind
        if self.whole:
            for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
                rate.fill_(group["lr"])
        if self.replay:
            for mine, new in zip(self.inputs, given, strict=True):
                mine.copy_(new, non_blocking=True)
        elif self.steps < WARM_UP or not self._record(given, step):
            self.steps += 1
            self.recorder.aside(lambda: self._with_rates(step))
            return
        assert self.replay
        self.replay()
        self.replaying = True
        try:
            tell()
        finally:
            self.replaying = False
        for parameter, gradient in self.gradients:
            parameter.grad = gradient

    def _record(self, batch: list[Tensor], step: Step) -> bool:
        """Whether it was possible."""
        if not self.possible or any(hooks_of(*self.network.modules())):
            return False
        try:
            self.replay = self.recorder.record(lambda: self._with_rates(step, capturable=True))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            log.warning("training steps: not as CUDA graphs: %s", first_line(error))
            torch.cuda.synchronize()
            self.possible = False
            return False
        self.inputs, self.state = batch, self._look()
        self.gradients = [
            (parameter, parameter.grad)
            for parameter in self.network.parameters()
            if parameter.grad is not None
        ]
        return True

    def _with_rates(self, step: Step, *, capturable: bool = False) -> None:
        """Run a step with the rates as tensors. Elsewhere they are numbers, in checkpoints too.

        Args:
            step: what is run.
            capturable: tell an optimizer of torch that it is recorded, which it refuses otherwise
                and would wonder about in other steps.
        """
        if not self.whole:
            step()
            return
        groups = self.optimizer.param_groups
        keys = ("lr", "capturable")
        before = [{key: group[key] for key in keys if key in group} for group in groups]
        for rate, group in zip(self.rates, groups, strict=True):
            group["lr"] = rate
            if capturable and "capturable" in group:
                group["capturable"] = True
        try:
            step()
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)

    def _look(self) -> Hashable:
        """What a graph takes for granted: modes, what is trained, and the places of tensors."""
        modules = [*self.network.modules()]
        tensors = [*self.network.parameters(), *self.network.buffers()]
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return (
            *(module.training for module in modules),
            any(hooks_of(*modules)),
            *(tensor.requires_grad for tensor in tensors),
            *(tensor.data_ptr() for tensor in tensors),
        )


def recorded(step: Step, recorder: Recorder) -> Step:
    """A step that is recorded when it is called first, after some that are run as they are."""
    replay: Step | None = None

    def run() -> None:
        nonlocal replay
        if replay is None:
            for _ in range(WARM_UP):
                recorder.aside(step)
            replay = recorder.record(step)
        replay()

    return run
