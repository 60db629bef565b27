"""The fastest way to run a trained network on this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from dwsep_zoo.analysis.count import image_shape
from dwsep_zoo.analysis.device import torch_threads
from dwsep_zoo.analysis.latency import BATCHES, take_turns, timer_for
from dwsep_zoo.analysis.runtimes import (
    RUNTIMES,
    Call,
    Workload,
    as_input,
    prepare_for,
    random_input,
)
from dwsep_zoo.errors import UserError, choose, first_line

log = logging.getLogger("dwsep_zoo")

AUTO = "auto"
AGREEMENT = {"fp32": 1e-3, "bf16": 0.1}
"""Largest difference of an output from float32 PyTorch, relative to the largest output.

In fp32 only the order of the sums differs. bfloat16 has 8 significant bits, so rounding costs 0.2 %
(2^-8 / sqrt(3)) on average. In a network of 100 layers, each of which rounds weights and
activations, 200 independent errors add up to 3 %. Outputs three times as far off are refused: the
network amplifies small differences, or the runtime computes something else.
"""


@dataclass
class Optimised:
    """A network in its fastest runtime: ``(N, C, H, W)`` -> ``(N, num_classes)``.

    It is called like the network, with float32 images. The first call with another batch size or
    image size takes long, as the runtime prepares itself for that size.

    Attributes:
        runtime: the fastest.
        times_ms: median time of one batch in each runtime that was tried, in turns.
        left_out: for each other runtime the reason: not installed, failed, or wrong outputs.
    """

    model: nn.Module = field(repr=False)
    runtime: str
    precision: str
    threads: int
    times_ms: Mapping[str, float]
    left_out: Mapping[str, str]
    _calls: dict[tuple[int, ...], Call] = field(default_factory=dict, repr=False)

    def __call__(self, x: Tensor) -> Tensor:
        workload = Workload(self.runtime, self.precision, device=x.device, threads=self.threads)
        x = _as_input(x, workload)
        with torch_threads(self.threads), torch.inference_mode():
            shape = tuple(x.shape)
            if shape not in self._calls:
                self._calls[shape] = _prepare(self.model, x, workload)
            return self._calls[shape](x).float()


def optimise(
    model: nn.Module,
    input_size: Sequence[int] | None = None,
    *,
    runtime: str = AUTO,
    batch_size: int = 1,
    precision: str = "fp32",
    threads: int | None = None,
    min_run_time: float = 0.5,
) -> Optimised:
    """Measure a network in the runtimes that are installed, in turns, and return the fastest.

    A runtime that fails is left out, and so is one whose outputs differ from those of PyTorch in
    float32 by more than the rounding of its precision (``AGREEMENT``). The result says why.

    Args:
        model: on the device where it is to run; it stays as it is.
        input_size: ``(C, H, W)``; ``None``: the network's own.
        runtime: one of ``RUNTIMES`` to have that one; ``auto``: the fastest. Compiling takes up to
            a minute.
        batch_size: images at a time.
        precision: ``fp32`` or ``bf16``, in which weights and activations are kept.
        threads: CPU threads; ``None``: torch's setting.
        min_run_time: seconds of measuring for each runtime.

    Raises:
        UserError: for a runtime that cannot be used here, with the line that installs it, or where
            none is left. An error of the ``runtime`` that was asked for comes through.
    """
    choose(runtime, [AUTO, *RUNTIMES], "runtime")
    shape = image_shape(model, input_size)
    threads = threads or torch.get_num_threads()
    device = next(model.parameters()).device
    eager = Workload("eager", precision, batch_size, device, threads)
    eager.check()
    images = random_input(batch_size, shape)
    with torch_threads(threads), torch.inference_mode():
        runs, left_out = _candidates(model, images, runtime, eager)
        if not runs:
            reasons = (f"{name}: {reason}" for name, reason in left_out.items())
            raise UserError(f"optimise: {'; '.join(reasons)}")
        seconds = max(min_run_time, BATCHES * 1e-3)
        calls = [partial(call, x) for call, x in runs.values()]
        turns = take_turns(calls, timer_for(device), seconds)
    times = {
        name: 1e3 * float(np.median(np.concatenate(own)))
        for name, own in zip(runs, turns, strict=True)
    }
    fastest = min(times, key=lambda name: times[name])
    best = Optimised(model, fastest, precision, threads, times, left_out)
    best._calls[tuple(images.shape)] = runs[fastest][0]
    return best


def _candidates(
    model: nn.Module, images: Tensor, runtime: str, eager: Workload
) -> tuple[dict[str, tuple[Call, Tensor]], dict[str, str]]:
    """The runtimes whose outputs are right, with their input, and why others are left out."""

    def run(workload: Workload) -> tuple[Call, Tensor, Tensor]:
        x = _as_input(images, workload)
        call = _prepare(model, x, workload)
        return call, x, call(x).float().cpu()

    *_, want = run(replace(eager, precision="fp32"))
    if not want.isfinite().all():
        raise UserError("optimise: the network's own outputs are not finite")
    runs: dict[str, tuple[Call, Tensor]] = {}
    left_out: dict[str, str] = {}
    for name in RUNTIMES if runtime == AUTO else [runtime]:
        workload = replace(eager, runtime=name)
        try:
            workload.check()
            call, x, got = run(workload)
        except Exception as error:  # a compiler, exporter or runtime raises any kind
            if runtime != AUTO:
                raise
            left_out[name] = str(error) if isinstance(error, UserError) else first_line(error)
            if not isinstance(error, UserError):
                log.warning("optimise: runtime %s failed: %s", name, left_out[name])
            continue
        if reason := _disagreement(got, want, AGREEMENT[eager.precision]):
            left_out[name] = reason
        else:
            runs[name] = call, x
    return runs, left_out


def _as_input(x: Tensor, workload: Workload) -> Tensor:
    """Convert to the type and layout of the runtime, outside of inference mode.

    PyTorch's compiler would compile once more for a tensor of the inference mode.
    """
    with torch.inference_mode(False), torch.no_grad():
        return as_input(x.clone() if x.is_inference() else x.detach(), workload)


def _prepare(model: nn.Module, x: Tensor, workload: Workload) -> Call:
    # A network is exported and compiled with gradients or without, but not in inference mode.
    with torch.inference_mode(False):
        return prepare_for(model, x, workload)


def _disagreement(got: Tensor, want: Tensor, tolerance: float) -> str | None:
    """The reason to distrust ``got``; ``None`` if it is ``want`` up to rounding."""
    difference, largest = float((got - want).abs().max()), float(want.abs().max())
    if difference <= tolerance * largest:  # which a NaN is not
        return None
    if not got.isfinite().all():
        return "its outputs are not finite"
    off = f"{difference / largest:.1%}" if largest else f"{difference:.3g}, and those are all 0"
    return f"its outputs differ from float32 PyTorch's by {off}"
