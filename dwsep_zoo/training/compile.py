"""Compiled training steps: the operations between two convolutions become one pass over memory.

Compilation takes about a minute, so by default a run has to be long enough to repay it, and its
steps are timed both ways: this project's kernels can make eager steps the faster ones. On a GPU
both are CUDA graphs.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from dwsep_zoo.acceleration import planned_forward, unchanged
from dwsep_zoo.errors import UserError, first_line
from dwsep_zoo.training.classifier import LitClassifier, total_steps
from dwsep_zoo.training.cuda_graphs import StepGraph, recorded
from dwsep_zoo.training.optim import OWN
from dwsep_zoo.training.out_of_memory import is_out_of_memory

log = logging.getLogger("dwsep_zoo")

LONG_ENOUGH = 600  # seconds of eager training, of which compilation is about a tenth
WORTHWHILE = 1.03  # times as fast; less is within what timing can tell
DECIDE_AFTER = 20  # steps
RECOMPILE_LIMIT = 1000  # of all networks and sizes of images in a process
WARM_UP, ROUNDS = 2, 5  # steps of each kind

Forward = Callable[[Tensor], Tensor]
TimedStep = Callable[[], float]


@dataclass(frozen=True)
class Decision:
    """The decision to compile the steps of a training or not, with its reason."""

    compiled: bool
    why: str


def choose_compile(
    option: bool | str, seconds: float, eager: TimedStep, compiled: TimedStep, *, sizes: int = 1
) -> Decision:
    """Decide by measuring, unless the user has decided.

    Args:
        option: ``trainer.compile``: True, False or ``"auto"``.
        seconds: that the training would take without.
        eager: runs one step and returns its seconds.
        compiled: the same, compiled when it is called first.
        sizes: of images, each of which is compiled for.

    Raises:
        UserError: if the user wants what cannot be compiled here.
    """
    if option is False:
        return Decision(False, "trainer.compile=false")
    if option == "auto" and seconds < LONG_ENOUGH:
        return Decision(False, f"{_duration(seconds)} are too short to repay compilation")
    begin = time.perf_counter()
    try:
        compiled()
    except Exception as error:  # of the compiler, the C++ compiler, the file system
        if is_out_of_memory(error):
            raise
        reason = first_line(error)
        if option is True:
            raise UserError(f"trainer.compile=true: cannot compile here: {reason}") from error
        return Decision(False, f"cannot compile here: {reason}")
    compilation = time.perf_counter() - begin
    took = f"compilation took {_duration(compilation)}"
    if option is True:
        return Decision(True, f"trainer.compile=true; {took}")
    for step in (eager, compiled) * WARM_UP:
        step()
    pairs = [(eager(), compiled()) for _ in range(ROUNDS)]  # in turns
    gain = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
    # Whether the first size repays its compilation was asked before; it is over.
    saved = seconds * (1 - 1 / gain) - (sizes - 1) * compilation
    each = f", for each of {sizes} sizes of images" if sizes > 1 else ""
    why = f"compiled ones are {gain:.2f} times as fast; {took}{each}"
    return Decision(gain >= WORTHWHILE and saved > 0, why)


class Compile(Callback):
    """Compiles the training steps where that pays; validation and test stay eager.

    ``trainer.compile=auto`` decides after a few steps, whose time tells how long the training is.
    The choice is kept in the checkpoints, so that a resumed run computes as it began.

    Args:
        option: ``trainer.compile``.
        input_size: ``(C, H, W)`` of the training images.
        batch_size: images of a step.
    """

    def __init__(self, option: bool | str, input_size: Sequence[int], batch_size: int):
        self.option = option
        self.shape = (batch_size, *input_size)
        self.choice: Decision | None = None
        self.compiled: Forward | None = None
        self.starts: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.choice) if self.choice else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict and self.option == "auto":
            self.choice = Decision(state_dict["compiled"], "as the training began")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitClassifier)
        pl_module.graph = None
        on_device = pl_module.teacher is None or pl_module.teacher.network is not None
        if self.option is not False and on_device and can_be_graphs(trainer, pl_module.device):
            (optimizer,) = trainer.optimizers
            whole = optimizer_can_be_recorded(trainer, pl_module.recipe.optimizer)
            pl_module.graph = StepGraph(pl_module.model, optimizer, whole=whole)
        pl_module.train_forward = pl_module.forward
        if self.option != "auto":
            self.choice = self._measure(trainer, pl_module, 0.0, sizes=1)
        elif self.choice is None and torch.are_deterministic_algorithms_enabled():
            self.choice = Decision(False, "what a clock says is not deterministic")
        if self.choice:
            self._use(pl_module, self.choice)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.choice:
            return
        self.starts.append(time.perf_counter())
        # At the same step of every run, so that one that was interrupted before goes on alike.
        due = batch_idx == DECIDE_AFTER or (trainer.current_epoch > 0 and batch_idx == 0)
        times = [b - a for a, b in zip(self.starts, self.starts[1:], strict=False)]
        if due and times:
            assert isinstance(pl_module, LitClassifier)
            epoch, full = trainer.current_epoch, self.shape[-1]
            sides = [pl_module.image_size(e, full) for e in range(epoch, trainer.max_epochs or 1)]
            timed = pl_module.image_size(epoch if batch_idx else epoch - 1, full)
            steps = total_steps(trainer) - trainer.global_step
            steps *= trainer.accumulate_grad_batches
            # Time goes with the number of pixels, of which there may be more later.
            pixels = statistics.mean((side / timed) ** 2 for side in sides)
            seconds = steps * pixels * statistics.median(times)
            seconds = trainer.strategy.broadcast(seconds)  # all processes measure, or none
            self.choice = self._measure(trainer, pl_module, seconds, sizes=len(set(sides)))
            self._use(pl_module, self.choice)

    def _measure(
        self, trainer: L.Trainer, module: L.LightningModule, seconds: float, *, sizes: int
    ) -> Decision:
        assert isinstance(module, LitClassifier)
        compiled = self._compiled(module)
        self.compiled = compiled  # another one would be compiled again
        images = torch.randn(self.shape, device=module.device)
        images = images.to(memory_format=torch.channels_last)  # as the data come
        context = trainer.precision_plugin.forward_context
        timed = partial(_timed, module.model, images, context, module.graph)
        try:
            with unchanged(module.model):
                choice = choose_compile(
                    self.option, seconds, timed(module.forward), timed(compiled), sizes=sizes
                )
        except RuntimeError as error:
            # Graphs keep their memory while compiled steps need theirs; one of them alone fits.
            if not (module.graph and self.option == "auto" and is_out_of_memory(error)):
                raise
            choice = Decision(False, "not enough memory to try compiled ones")
        return trainer.strategy.broadcast(choice)

    def _use(self, module: L.LightningModule, choice: Decision) -> None:
        assert isinstance(module, LitClassifier)
        kind = "compiled" if choice.compiled else "eager"
        if module.graph:
            kind += ", as CUDA graphs"
        log.info("training steps: %s (%s)", kind, choice.why)
        if choice.compiled:
            module.train_forward = self.compiled or self._compiled(module)
        self.compiled = None  # if it is unused, its memory is free

    @staticmethod
    def _compiled(module: LitClassifier) -> Forward:
        recorded = module.graph is not None
        return compiled_forward(module.model, module.device, recorded=recorded)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitClassifier)
        if pl_module.graph:
            pl_module.graph.clear()
        pl_module.graph = None


def can_be_graphs(trainer: L.Trainer, device: torch.device) -> bool:
    """Whether steps can be recorded as CUDA graphs."""
    return (
        device.type == "cuda"
        and trainer.world_size == 1
        and trainer.accumulate_grad_batches == 1  # a graph's gradients replace the last ones
    )


def optimizer_can_be_recorded(trainer: L.Trainer, name: str) -> bool:
    """Whether a CUDA graph can contain the step of the optimizer.

    Clipping and the scaling of gradients need other kernels, which read rates on the CPU. Other
    optimizers may keep their state there.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return name in OWN and not trainer.gradient_clip_val and scaler is None


def compiled_forward(model: nn.Module, device: torch.device, *, recorded: bool = False) -> Forward:
    """The network's forward pass, compiled at its first call and again for every size of images.

    On a GPU forward and backward pass are CUDA graphs, unless the whole step is ``recorded``.
    """
    mode = "reduce-overhead" if device.type == "cuda" and not recorded else None
    compiled: dict[Forward, Forward] = {}

    def forward(x: Tensor) -> Tensor:
        own = planned_forward(model, x)
        if own not in compiled:  # not before: the compiler takes a second to import
            # fullgraph: beyond the limit it fails, and does not go on uncompiled.
            compiled[own] = torch.compile(own, fullgraph=True, dynamic=False, mode=mode)
        # All networks share the code of one forward, of which PyTorch keeps 8 compilations by
        # default.
        with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
            return compiled[own](x)

    return forward


def _timed(
    model: nn.Module,
    images: Tensor,
    context: Callable[[], AbstractContextManager[None]],
    graph: StepGraph | None,
    forward: Forward,
) -> TimedStep:
    """A function that returns the seconds of a forward and a backward pass.

    If the training's steps are a graph, so are these, in its place.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def step() -> None:
        with context():
            logits = forward(images).float()
        torch.autograd.grad(F.cross_entropy(logits, labels), parameters)

    run = recorded(step, graph.recorder) if graph and graph.possible else step

    def seconds() -> float:
        if graph:
            graph.clear()
        _wait(images.device)
        begin = time.perf_counter()
        run()
        _wait(images.device)
        return time.perf_counter() - begin

    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
