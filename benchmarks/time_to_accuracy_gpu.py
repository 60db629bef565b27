"""Time until a depthwise network classifies CIFAR-10 with 94 % accuracy, on a GPU.

Runs ``train.py experiment=cifar10_fast_gpu``. The time covers the training from its first step to
its last. Pictures are read and kernels are compiled before, by a training of one epoch whose
kernels Triton caches. The time of the whole command is recorded too.

    python benchmarks/time_to_accuracy_gpu.py --root data/cifar10    # as pictures in folders
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from record import Ratio, Record, finish, machine
from time_to_accuracy import error_ratio, root_of, train

from dwsep_zoo.training.trainer import auto_precision

EXPERIMENT = ("experiment=cifar10_fast_gpu", "conv.mid=none")
ACCURACY = 94.0  # percent of the test images
SECONDS = 20.0


def main() -> None:
    options = root_of(__doc__)
    if not torch.cuda.is_available():
        sys.exit("time_to_accuracy_gpu: there is no CUDA device")
    root = Path(options.root).resolve()
    overrides = (*EXPERIMENT, "trainer=gpu", "data=folder", f"data.root={root}")
    train(*overrides, "recipe.epochs=1")
    result, whole = train(*overrides)
    seconds = result["time"]["train_s"]
    figures = {"seconds": seconds, "whole command s": whole}
    ratios = [
        error_ratio(result, ACCURACY, figures),
        Ratio(f"mobilenet_v1: time / {SECONDS:g} s", seconds / SECONDS, 1.0, figures, at_most=True),
    ]
    conditions = (
        f"CIFAR-10 as JPEG pictures, {' '.join(EXPERIMENT)}, {result['epochs']} epochs, one seed, "
        f"an image, moved by a pixel and mirrored, averaged in the test; "
        f"{auto_precision('cuda')}. {machine('cuda')}"
    )
    claim = f"Time to accuracy on a GPU: CIFAR-10 to {ACCURACY:g} % of the test images"
    record = Record("time_to_accuracy_gpu", claim, conditions, ratios, options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
