"""Does the fast path of training cost accuracy? The same seeds, fast and plain.

* fast: the default of ``train.py``: reduced precision where the hardware is fast at it,
  channels_last, and this project's kernels.
* plain: float32, NCHW, and PyTorch's operators.

Both see the same batches and start with the same weights. The claim is about test error. With one
seed, short trainings can differ by two points in either direction at any precision, so they decide
nothing. The record therefore has the interval of the difference, for long trainings too.

    python benchmarks/accuracy_parity.py --root data/cifar10    # CIFAR-10 as pictures in folders

This folder is the default.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import nullcontext
from pathlib import Path

from record import Ratio, Record, finish, machine, parse, parser

from dwsep_zoo.config import compose_settings
from dwsep_zoo.ops import plain_kernels
from dwsep_zoo.report.statistics import t_interval
from dwsep_zoo.training import train

BAR = 0.3  # allowed loss in points of test accuracy
SEEDS = (0, 1, 2)
PLAIN = ("trainer.precision=32-true", "trainer.channels_last=false", "trainer.compile=false")
SIDES = ("plain", "fast")


def accuracy(side: str, seed: int, root: str, epochs: int, width_mult: float) -> float:
    """Train once and return the test accuracy in percent."""
    plain = side == "plain"
    with tempfile.TemporaryDirectory() as folder, plain_kernels() if plain else nullcontext():
        settings = compose_settings(
            [
                *("experiment=cifar10_fast", "data=folder", f"data.root={root}", "trainer=cpu"),
                *(f"model.width_mult={width_mult}", "model.output_stride=16"),
                *(f"recipe.epochs={epochs}", f"seed={seed}"),
                *("trainer.enable_progress_bar=false", f"paths.output_dir={folder}"),
                *(PLAIN if plain else ()),
            ]
        )
        accuracy = train(settings).metrics["test/acc"]
        assert accuracy is not None
        return 100 * accuracy


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--root", default="data/cifar10", help="folder with train/ and test/")
    arguments.add_argument("--epochs", type=int, default=20)
    arguments.add_argument("--width-mult", type=float, default=0.25)
    options = parse(arguments)
    if not Path(options.root).is_dir():
        arguments.error(f"--root: there is no folder {options.root}")
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for seed in SEEDS:
        for side, values in found.items():
            values.append(accuracy(side, seed, options.root, options.epochs, options.width_mult))
            print(f"seed {seed}, {side}: {values[-1]:.2f} %", flush=True)
    error = {side: 100 - statistics.mean(values) for side, values in found.items()}
    each = [fast - plain for fast, plain in zip(found["fast"], found["plain"], strict=True)]
    interval = t_interval(each)
    said = f"95 % interval [{interval.low:+.2f}, {interval.high:+.2f}]" if interval else "equal"
    ratio = Ratio(
        "mobilenet_v1: fast / plain",
        error["fast"] / error["plain"],
        (error["plain"] + BAR) / error["plain"],
        {f"{side} error %": value for side, value in error.items()},
        at_most=True,
    )
    conditions = (
        f"CIFAR-10, width {options.width_mult:g}, output stride 16, {options.epochs} epochs of "
        f"experiment=cifar10_fast, mean of seeds {', '.join(map(str, SEEDS))}; accuracy of "
        f"fast - plain: "
        f"{', '.join(f'{d:+.2f}' for d in each)} points, mean "
        f"{statistics.mean(each):+.2f}, {said}; the bar is {BAR} points. {machine()}"
    )
    claim = "Training: test error of the fast path against plain float32, the same seeds"
    record = Record("accuracy_parity", claim, conditions, [ratio], options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
