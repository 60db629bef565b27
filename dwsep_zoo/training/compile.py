"""Compiled training steps: what lies between two convolutions becomes one pass over memory.

Norm and activation, forward and backward, take a fifth of MobileNetV1's step on a CPU. Compilation
takes about a minute, so by default a run has to be long enough to repay it, and its own steps are
timed: with some activations the compiled network is no faster.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from dwsep_zoo.errors import UserError
from dwsep_zoo.training.classifier import LitClassifier, total_steps

log = logging.getLogger("dwsep_zoo")

LONG_ENOUGH = 600  # seconds of eager training, of which compilation is about a tenth
WORTHWHILE = 1.03  # times as fast; less is within what timing can tell
DECIDE_AFTER = 20  # steps
WARM_UP, ROUNDS = 2, 5  # steps of each kind

Step = Callable[[], float]


@dataclass(frozen=True)
class Choice:
    """Whether the steps of a training are compiled, and why."""

    compiled: bool
    why: str


def choose_compile(option: bool | str, seconds: float, eager: Step, compiled: Step) -> Choice:
    """Decide by measuring, unless the user has decided.

    Args:
        option: ``trainer.compile``: True, False or ``"auto"``.
        seconds: that the training would take without.
        eager: runs one step and returns its seconds.
        compiled: the same, compiled when it is called first.

    Raises:
        UserError: if the user wants what cannot be compiled here.
    """
    if option is False:
        return Choice(False, "trainer.compile=false")
    if option == "auto" and seconds < LONG_ENOUGH:
        return Choice(False, f"{_duration(seconds)} are too short to repay compilation")
    begin = time.perf_counter()
    try:
        compiled()
    except Exception as error:  # of the compiler, the C++ compiler, the file system
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if option is True:
            raise UserError(f"trainer.compile=true: cannot compile here: {reason}") from error
        return Choice(False, f"cannot compile here: {reason}")
    took = _duration(time.perf_counter() - begin)
    if option is True:
        return Choice(True, f"trainer.compile=true; compilation took {took}")
    for step in (eager, compiled) * WARM_UP:
        step()
    pairs = [(eager(), compiled()) for _ in range(ROUNDS)]  # in turns
    gain = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
    why = f"compiled ones are {gain:.2f} times as fast; compilation took {took}"
    return Choice(gain >= WORTHWHILE, why)


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
        self.choice: Choice | None = None
        self.starts: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.choice) if self.choice else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.choice = Choice(**state_dict) if state_dict else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.choice:  # of the run that is resumed
            assert isinstance(pl_module, LitClassifier)
            self._use(pl_module, compiled_forward(pl_module.model, pl_module.device))
        elif self.option != "auto":
            self._choose(trainer, pl_module, 0.0)

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
            steps = total_steps(trainer) - trainer.global_step
            steps *= trainer.accumulate_grad_batches
            self._choose(trainer, pl_module, steps * statistics.median(times))

    def _choose(self, trainer: L.Trainer, module: L.LightningModule, seconds: float) -> None:
        assert isinstance(module, LitClassifier)
        model, forward = module.model, compiled_forward(module.model, module.device)
        context = trainer.precision_plugin.forward_context
        images = torch.randn(self.shape, device=module.device)
        images = images.to(memory_format=torch.channels_last)  # as the data come
        with _unchanged(model):
            choice = choose_compile(
                self.option,
                seconds,
                lambda: _step(model, model, images, context),
                lambda: _step(model, forward, images, context),
            )
        self.choice = trainer.strategy.broadcast(choice)
        word = "compiled" if self.choice.compiled else "eager"
        log.info("training steps: %s (%s)", word, self.choice.why)
        self._use(module, forward)

    def _use(self, module: LitClassifier, forward: Callable[[Tensor], Tensor]) -> None:
        if self.choice and self.choice.compiled:
            module.train_forward = forward


def compiled_forward(model: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The network's forward pass, compiled at its first call and again for every size of images.

    On a GPU forward and backward are recorded as CUDA graphs, which spares the launches.
    """
    mode = "reduce-overhead" if device.type == "cuda" else None
    return torch.compile(model.forward, dynamic=False, mode=mode)


def _step(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    context: Callable[[], AbstractContextManager[None]],
) -> float:
    """Seconds of a forward and a backward pass."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    _wait(images.device)
    begin = time.perf_counter()
    with context():
        logits = forward(images).float()
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    torch.autograd.grad(F.cross_entropy(logits, labels), parameters)
    _wait(images.device)
    return time.perf_counter() - begin


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Give the statistics of norms and the random numbers back as they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
