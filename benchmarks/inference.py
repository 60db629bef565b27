"""Latency of one picture: the choice of ``dwsep_zoo.optimise`` against timm's network in PyTorch.

The sides run in turns in one process, with the same input size and random weights:

* timm: ``timm.create_model(...)`` unchanged, in eval and inference mode: eager, float32, NCHW.
* eager: this project's network, also eager and float32, in channels_last.
* chosen: the fastest of the installed runtimes.

    python benchmarks/inference.py          # prints a table and writes results/inference.json
"""

from __future__ import annotations

import statistics

import timm
import torch
from record import Ratio, Record, finish, machine, parse, parser

from dwsep_zoo import create_model, optimise
from dwsep_zoo.analysis.latency import take_turns, timer_for
from dwsep_zoo.training.trainer import auto_precision

NETWORKS = {
    "mobilenet_v1": ("mobilenetv1_100", 5.0),
    "mobilenet_v2": ("mobilenetv2_100", 5.0),
    "mobilenet_v3_large": ("mobilenetv3_large_100", None),
    "efficientnet_b0": ("efficientnet_b0", None),
}
"""timm's name, and the bar for timm / chosen."""
SIZE = (3, 224, 224)


def measure(name: str, theirs: str, precision: str, seconds: float) -> tuple[str, dict[str, float]]:
    """Return the chosen runtime, and the median milliseconds of each side."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    rival = timm.create_model(theirs).eval()
    chosen = optimise(model, input_size=SIZE, precision=precision)
    model.to(memory_format=torch.channels_last)
    x = torch.randn(1, *SIZE)
    last = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        runs = [lambda: rival(x), lambda: model(last), lambda: chosen(x)]
        turns = take_turns(runs, timer_for(torch.device("cpu")), seconds)
    medians = [1e3 * statistics.median(t for turn in of for t in turn) for of in turns]
    return chosen.runtime, dict(zip(("timm", "eager", "chosen"), medians, strict=True))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=5.0, help="of measuring a side")
    options = parse(arguments)
    # Try bf16 where the hardware is fast at it, as in training.
    precisions = ["fp32", "bf16"] if auto_precision("cpu") == "bf16-mixed" else ["fp32"]
    ratios = []
    for name, (theirs, bar) in NETWORKS.items():
        for precision in precisions:
            runtime, ms = measure(name, theirs, precision, options.seconds)
            figures = {f"{side} ms": value for side, value in ms.items()}
            # Without the runtime's name, so that another choice still compares with the record.
            case = f"{name}, {precision}: timm / chosen"
            last = bar if precision == precisions[-1] else None
            ratios.append(Ratio(case, ms["timm"] / ms["chosen"], last, figures))
            print(f"{case}: {runtime}, {ms}", flush=True)
    conditions = (
        f"Medians of {options.seconds:g} s a side, in turns; batch 1, 3 x 224 x 224. timm: "
        f"float32, NCHW, eager; chosen: the fastest runtime in the precision named. {machine()}"
    )
    claim = "Inference: the time of one picture, timm's against what `optimise` chooses"
    record = Record("inference", claim, conditions, ratios, options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
