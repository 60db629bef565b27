"""Time until a depthwise network classifies CIFAR-10 with 90 % accuracy, on the CPU.

Runs ``train.py experiment=cifar10_fast`` as a user would. The time includes the start of Python,
reading the pictures, training, validation and test.

    python benchmarks/time_to_accuracy.py --root data/cifar10    # CIFAR-10 as pictures in folders
    python benchmarks/time_to_accuracy_gpu.py                    # the same on a GPU

That folder is the default. Absolute times do not carry over to other machines, so the conditions
state the matrix-multiply rate of this one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import Ratio, Record, finish, machine, parse, parser

from dwsep_zoo.training.trainer import auto_precision

TRAIN = Path(__file__).parents[1] / "train.py"
EXPERIMENT = ("experiment=cifar10_fast", "conv.mid=none")
ACCURACY = 90.0  # percent of the test images
MINUTES = 12.0


def train(*overrides: str) -> tuple[dict[str, Any], float]:
    """Train; return the content of ``result.json`` and the seconds of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        command = [sys.executable, str(TRAIN), *overrides, f"hydra.run.dir={folder}/run"]
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - begin
        result: dict[str, Any] = json.loads((Path(folder) / "run" / "result.json").read_text())
    return result, seconds


def error_ratio(result: dict[str, Any], accuracy: float, figures: dict[str, float]) -> Ratio:
    figures["test error %"] = 100 * (1 - result["metrics"]["test/acc"])
    figures["images/s"] = result["images_per_second"]
    most = 100 - accuracy
    case = f"mobilenet_v1: test error / {most:g} %"
    return Ratio(case, figures["test error %"] / most, 1.0, figures, at_most=True)


def root_of(doc: str | None) -> Any:
    """Parse the options and check that ``root`` is a folder."""
    arguments = parser(doc)
    arguments.add_argument("--root", default="data/cifar10", help="folder with train/ and test/")
    options = parse(arguments)
    if not Path(options.root).is_dir():
        arguments.error(f"--root: there is no folder {options.root}")
    return options


def main() -> None:
    options = root_of(__doc__)
    root = Path(options.root).resolve()
    result, seconds = train(*EXPERIMENT, "trainer=cpu", "data=folder", f"data.root={root}")
    figures = {"minutes": seconds / 60}
    ratios = [
        error_ratio(result, ACCURACY, figures),
        Ratio(
            f"mobilenet_v1: time / {MINUTES:g} min",
            figures["minutes"] / MINUTES,
            1.0,
            figures,
            at_most=True,
        ),
    ]
    conditions = (
        f"CIFAR-10 as JPEG pictures, {' '.join(EXPERIMENT)}, {result['epochs']} epochs, one seed, "
        f"an image, moved by a pixel and mirrored, averaged in the test, the whole command; "
        f"{auto_precision('cpu')}. {machine()}"
    )
    claim = f"Time to accuracy: CIFAR-10 to {ACCURACY:g} % of the test images"
    record = Record("time_to_accuracy", claim, conditions, ratios, options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
