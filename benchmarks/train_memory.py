"""Peak memory of training at CIFAR size, against the loop that CIFAR repositories share.

The sides are ``common`` and ``app`` of ``train_speed.py``. Each trains in its own process, after
loading the pictures. Its memory is the largest growth of the process from then on. The workers of
the common loop are not counted.

    python benchmarks/train_memory.py       # prints a table and writes results/train_memory.json
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from typing import Any

import torch
from record import Ratio, Record, finish, machine, parse, parser
from train_speed import BATCH, NETWORKS, RandomPictures, app, common, random_data

from dwsep_zoo.training.process_memory import keep_memory
from dwsep_zoo.training.trainer import auto_precision

BAR = 0.7
STEPS = 8
SIDES = ("common", "app")


def peak_mb() -> float:
    """Return the peak memory of this process so far."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1e6 if sys.platform == "darwin" else 1e3)


def measure(side: str, network: dict[str, Any]) -> float:
    """Train in this process and return the added megabytes."""
    pictures = RandomPictures()
    data = random_data(pictures)
    torch.zeros(8, 8, requires_grad=True).mm(torch.zeros(8, 8)).sum().backward()  # loads libraries
    before = peak_mb()
    if side == "app":
        keep_memory()
        app(network, data, STEPS, compiled=False)
    else:
        step = common(network, pictures)
        for _ in range(STEPS):
            step()
    return peak_mb() - before


def measured(side: str, network: dict[str, Any]) -> float:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--side", side, "--network", json.dumps(network)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--side", choices=SIDES, help="measure one in this process")
    arguments.add_argument("--network", type=json.loads)
    options = parse(arguments)
    if options.side:
        print(measure(options.side, options.network))
        return
    ratios = []
    for name, stride, _ in NETWORKS:
        network = {"name": name, "num_classes": 10, "output_stride": stride}
        rounds = [{side: measured(side, network) for side in SIDES} for _ in range(options.rounds)]
        mb = {side: statistics.median(row[side] for row in rounds) for side in SIDES}
        figures = {f"{side} MB": value for side, value in mb.items()}
        case = f"{name}, output stride {stride}: app / common"
        ratios.append(Ratio(case, mb["app"] / mb["common"], BAR, figures, at_most=True))
        print(ratios[-1], flush=True)
    conditions = (
        f"Growth of the process over {STEPS} steps, median of {options.rounds} processes a side; "
        f"batch {BATCH}, 3 x 32 x 32, width 1. app: {auto_precision('cpu')}, channels_last; "
        f"common: float32, NCHW, without its workers. {machine()}"
    )
    claim = "Training at CIFAR size: peak memory against the loop that CIFAR repositories share"
    record = Record("train_memory", claim, conditions, ratios, options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
