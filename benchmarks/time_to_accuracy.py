"""How long until a depthwise network knows CIFAR-10? From the command to its test accuracy.

Runs ``train.py experiment=cifar10_fast`` as a user would: start of Python, reading of the pictures,
training, validation and test are all in the time.

    python benchmarks/time_to_accuracy.py --root data/cifar10    # CIFAR-10 as pictures in folders

That folder is the default. An absolute time means nothing on another machine: the conditions have
the rate at which this one multiplies matrices.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from record import Ratio, Record, finish, machine, parse, parser
from torch.utils.benchmark import Timer

from dwsep_zoo.training.trainer import auto_precision

TRAIN = Path(__file__).parents[1] / "train.py"
EXPERIMENT = ("experiment=cifar10_fast", "conv.mid=none")
ACCURACY = 90.0  # percent of the test images
MINUTES = 12.0


def measure(root: str) -> tuple[dict[str, float], int]:
    """Of one training: minutes, test error in percent, images/s; and its epochs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, str(TRAIN), *EXPERIMENT, "trainer=cpu"),
            *("data=folder", f"data.root={root}", f"hydra.run.dir={folder}/run"),
        ]
        begin = time.perf_counter()
        subprocess.run(command, check=True)
        minutes = (time.perf_counter() - begin) / 60
        result = json.loads((Path(folder) / "run" / "result.json").read_text())
    figures = {
        "minutes": minutes,
        "test error %": 100 * (1 - result["metrics"]["test/acc"]),
        "images/s": result["images_per_second"],
    }
    return figures, result["epochs"]


def gflop_s() -> float:
    """Of large matrix products, in the precision of the training."""
    bf16 = auto_precision("cpu") == "bf16-mixed"
    a = torch.randn(2048, 2048, dtype=torch.bfloat16 if bf16 else torch.float32)
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    return 2 * 2048**3 / timer.blocked_autorange(min_run_time=2).median / 1e9


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--root", default="data/cifar10", help="folder with train/ and test/")
    options = parse(arguments)
    if not Path(options.root).is_dir():
        arguments.error(f"--root: there is no folder {options.root}")
    rate = gflop_s()
    figures, epochs = measure(str(Path(options.root).resolve()))
    most = 100 - ACCURACY
    ratios = [
        Ratio(
            f"mobilenet_v1: test error / {most:g} %",
            figures["test error %"] / most,
            1.0,
            figures,
            at_most=True,
        ),
        Ratio(
            f"mobilenet_v1: time / {MINUTES:g} min",
            figures["minutes"] / MINUTES,
            1.0,
            figures,
            at_most=True,
        ),
    ]
    conditions = (
        f"CIFAR-10 as JPEG pictures, {' '.join(EXPERIMENT)}, {epochs} epochs, one seed, an image "
        f"and its mirror image averaged in the test, the whole command; "
        f"{auto_precision('cpu')}, {rate:.0f} GFLOP/s in large matrix products. {machine()}"
    )
    claim = f"Time to accuracy: CIFAR-10 to {ACCURACY:g} % of the test images"
    record = Record("time_to_accuracy", claim, conditions, ratios, options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
