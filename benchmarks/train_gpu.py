"""Training images/s on a GPU: this project's networks against timm's, with the same step otherwise.

Sides, in turns: timm's network, eager; the same with each step as a CUDA graph (``ours / timm
graph`` is then the gain from our kernels); this project's network with its kernels, likewise as a
graph, as its trainer runs it. ``--compiled`` adds timm's with
``torch.compile(mode="max-autotune-no-cudagraphs")``, which takes minutes. All sides use
channels_last, bf16-mixed and fused SGD, on the same images, which are on the GPU already.

    python benchmarks/train_gpu.py            # prints a table and writes results/train_gpu.json
    python benchmarks/train_gpu.py --only mobilenet_v2

A ratio is of medians over turns of 20 steps; memory is the peak of a side's own steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from record import Ratio, Record, finish, machine, parse, parser
from torch import Tensor, nn

from dwsep_zoo import accelerate, create_model
from dwsep_zoo.training.cuda_graphs import StepGraph

DEVICE = torch.device("cuda")
STEPS, TURNS, WARM_UP = 20, 5, 5
Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    name: str
    timm_name: str
    pixels: int
    batch: int
    bar: float | None  # required images/s of ours
    output_stride: int = 32


CASES = (
    Case("mobilenet_v2", "mobilenetv2_100", 224, 512, 20_000),
    Case("mobilenet_v1", "mobilenetv1_100", 32, 1024, 200_000, output_stride=16),
)


def timm_model(case: Case) -> nn.Module:
    model: nn.Module = timm.create_model(case.timm_name, num_classes=1000)
    stem = model.get_submodule("conv_stem")
    assert isinstance(stem, nn.Conv2d)
    if case.output_stride == 16:
        stem.stride = (1, 1)
    return model


def own_model(case: Case) -> nn.Module:
    network = create_model(case.name, num_classes=1000, output_stride=case.output_stride)
    return accelerate(network)


def step_of(model: nn.Module, case: Case, *, graph: bool = True, mode: str | None = None) -> Step:
    """A training step; ``mode``: of ``torch.compile``, if the forward pass is to be compiled."""
    model = model.to(DEVICE).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, fused=True)
    images = torch.randn(case.batch, 3, case.pixels, case.pixels, device=DEVICE)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (case.batch,), device=DEVICE)
    forward = torch.compile(model, mode=mode) if mode else model

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            logits: Tensor = forward(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    if not graph:
        return step
    recorded = StepGraph(model, optimizer, whole=True)
    return lambda: recorded.run(None, (images, labels), step)


def sides_of(case: Case, *, compiled: bool) -> dict[str, Callable[[], Step]]:
    sides: dict[str, Callable[[], Step]] = {
        "ours": lambda: step_of(own_model(case), case),
        "timm": lambda: step_of(timm_model(case), case, graph=False),
        "timm graph": lambda: step_of(timm_model(case), case),
    }
    if compiled:
        mode = "max-autotune-no-cudagraphs"
        sides["timm compiled"] = lambda: step_of(timm_model(case), case, graph=False, mode=mode)
    return sides


def seconds(step: Step) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(STEPS):
        step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / STEPS


def measure(case: Case, *, compiled: bool) -> list[Ratio]:
    steps: dict[str, Step] = {}
    memory: dict[str, float] = {}
    for name, make in sides_of(case, compiled=compiled).items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps[name] = make()
        for _ in range(WARM_UP):
            steps[name]()
        torch.cuda.synchronize()
        memory[name] = (torch.cuda.max_memory_allocated() - before) / 1e9
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(TURNS):
        for name, step in steps.items():
            times[name].append(seconds(step))
    speed = {name: case.batch / statistics.median(values) for name, values in times.items()}
    speeds = {f"{name} images/s": value for name, value in speed.items()}
    label = f"{case.name} at {case.pixels}, batch {case.batch}"
    print(label, speeds, memory, flush=True)
    others: Sequence[str] = [name for name in speed if name != "ours"]
    ratios = [Ratio(f"{label}: ours / {n}", speed["ours"] / speed[n], None, speeds) for n in others]
    if case.bar:
        ratios.append(Ratio(f"{label}: ours / bar", speed["ours"] / case.bar, 1.0, speeds))
    figures = {f"{name} GB": value for name, value in memory.items()}
    ratio = memory["ours"] / memory["timm"]
    ratios.append(Ratio(f"{label}: peak memory, ours / timm", ratio, None, figures, at_most=True))
    return ratios


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--compiled", action="store_true", help="timm's compiled, too")
    arguments.add_argument("--only", choices=[case.name for case in CASES], help="one network")
    options = parse(arguments)
    if not torch.cuda.is_available():
        arguments.error("there is no CUDA device")
    cases = [case for case in CASES if options.only in (None, case.name)]
    ratios = [ratio for case in cases for ratio in measure(case, compiled=options.compiled)]
    conditions = (
        f"bf16-mixed, channels_last, fused SGD, 1000 classes, images on the GPU; medians of "
        f"{TURNS} turns of {STEPS} steps, the sides in turns. {machine('cuda')}"
    )
    claim = "Training images/s on a GPU, against timm"
    finish(Record("train_gpu", claim, conditions, ratios, options.arguments), check=options.check)


if __name__ == "__main__":
    main()
