"""Training images/s of timm's networks with `dwsep_zoo.accelerate`, against the same without.

Four sides take steps in turns, on random images of 3 x 32 x 32, with a stem of stride 1:

* timm: the network as it comes, float32, NCHW.
* plain: timm's fastest plain form, float32, channels_last.
* accelerated: timm's network after `accelerate`, channels_last, bfloat16 autocast where the
  hardware is fast at it.
* zoo: this project's network of the same name, accelerated, in the same precision.

    python benchmarks/accelerate.py      # prints a table and writes results/accelerate.json

A step is forward, cross-entropy, backward and fused SGD. Run it on a quiet machine. A ratio
compares medians over steps.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter

import timm
import torch
import torch.nn.functional as F
from record import Ratio, Record, finish, machine, parse, parser
from torch import nn

from dwsep_zoo import accelerate, create_model
from dwsep_zoo.training.process_memory import keep_memory
from dwsep_zoo.training.trainer import auto_precision

WARM_UP = 2  # uncounted steps of each block
SIZE = 32


@dataclass(frozen=True)
class Case:
    """A network of timm, the zoo's with its output stride, and the bars for accelerated / ...

    Attributes:
        timm: its name there; the first convolution gets stride 1.
        zoo: this project's name, or ``None``.
    """

    timm: str
    zoo: str | None
    bar_timm: float
    bar_plain: float


CASES = (
    Case("mobilenetv2_100", "mobilenet_v2", 4.5, 2.7),
    Case("mobilenetv3_large_100", "mobilenet_v3_large", 3.8, 2.4),
    Case("efficientnet_b0", "efficientnet_b0", 4.0, 2.3),
    Case("mobilenetv4_conv_small", "mobilenet_v4_conv_small", 2.9, 1.6),
    Case("mnasnet_100", None, 4.0, 2.0),
    Case("xception41", "xception41", 2.0, 1.3),
)
ZOO_GOAL = 0.9  # for accelerated / zoo


def network_of_timm(name: str) -> nn.Module:
    model = timm.create_model(name, num_classes=10)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.stride = (1, 1)
    return model


def network_of_zoo(name: str) -> nn.Module:
    model = create_model(name, num_classes=10)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.stride, first.padding = (1, 1), (1, 1)
    return model


def step_of(model: nn.Module, batch: int, *, last: bool, bf16: bool) -> Callable[[], None]:
    layout = torch.channels_last if last else torch.contiguous_format
    model.train().to(memory_format=layout)
    images = torch.randn(batch, 3, SIZE, SIZE).to(memory_format=layout)
    labels = torch.arange(batch) % 10
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            logits = model(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def sides(case: Case, batch: int) -> dict[str, Callable[[], None]]:
    bf16 = auto_precision("cpu") == "bf16-mixed"
    found = {
        "timm": step_of(network_of_timm(case.timm), batch, last=False, bf16=False),
        "plain": step_of(network_of_timm(case.timm), batch, last=True, bf16=False),
        "accelerated": step_of(accelerate(network_of_timm(case.timm)), batch, last=True, bf16=bf16),
    }
    if case.zoo:
        zoo = accelerate(network_of_zoo(case.zoo))
        found["zoo"] = step_of(zoo, batch, last=True, bf16=bf16)
    return found


def measure(case: Case, rounds: int, steps: int, batch: int) -> dict[str, float]:
    """Return the median images/s of each side."""
    times: dict[str, list[float]] = defaultdict(list)
    running = sides(case, batch)
    for _ in range(rounds):
        for name, step in running.items():
            for number in range(WARM_UP + steps):
                begin = perf_counter()
                step()
                if number >= WARM_UP:
                    times[name].append(perf_counter() - begin)
    return {name: batch / statistics.median(found) for name, found in times.items()}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=4)
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--only", help="timm's name of one network")
    options = parse(arguments)
    keep_memory()
    ratios = []
    for case in CASES:
        if options.only not in (None, case.timm):
            continue
        speed = measure(case, options.rounds, options.steps, options.batch)
        figures = {f"{side} images/s": value for side, value in speed.items()}
        bars = {"timm": case.bar_timm, "plain": case.bar_plain, "zoo": ZOO_GOAL}
        for other in [side for side in speed if side != "accelerated"]:
            ratio = speed["accelerated"] / speed[other]
            title = f"{case.timm}: accelerated / {other}"
            ratios.append(Ratio(title, ratio, bars[other], figures))
        print(case.timm, {side: round(value) for side, value in speed.items()}, flush=True)
    conditions = (
        f"Medians over {options.rounds} x {options.steps} steps, sides in turns; batch "
        f"{options.batch}, 3 x {SIZE} x {SIZE}, stem of stride 1, 10 classes, fused SGD; "
        f"accelerated and zoo: {auto_precision('cpu')}, channels_last. {machine()}"
    )
    claim = "Training timm's networks with accelerate(): images/s against the same networks"
    record = Record("accelerate", claim, conditions, ratios, options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
