"""Training images/s of the whole app on a GPU, against the same steps without anything around them.

* app: ``train.py experiment=cifar10_fast_gpu``, as a user runs it: reading, augmentation, metrics,
  schedule, callbacks and log around each step.
* bare: the same network, optimizer and batch size, on images that are on the GPU already, each step
  a CUDA graph.

The pictures are random numbers in CIFAR-10's files, all of one size. The app's speed is that of its
median epoch.

    python benchmarks/app_gpu.py              # prints a table and writes results/app_gpu.json
"""

from __future__ import annotations

import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from record import Ratio, Record, finish, machine, parse, parser
from time_to_accuracy import train

from dwsep_zoo import accelerate, create_model
from dwsep_zoo.config import compose_settings
from dwsep_zoo.data.cifar import FILES
from dwsep_zoo.schema.settings import Recipe
from dwsep_zoo.training.cuda_graphs import StepGraph
from dwsep_zoo.training.optim import create_optimizer, parameter_groups
from dwsep_zoo.training.trainer import auto_precision

EXPERIMENT = ("experiment=cifar10_fast_gpu", "conv.mid=none", "recipe.initial_size=null")
EPOCHS = 6
BAR = 0.9
IMAGES = 10_000  # in a file
STEPS, TURNS = 50, 5


def write_pictures(root: Path) -> None:
    """CIFAR-10's files with random pixels and labels."""
    files, rng = FILES["cifar10"], np.random.default_rng(0)
    folder = root / files.folder
    folder.mkdir(parents=True)
    for name in (*files.train, *files.test):
        content = {
            "data": rng.integers(0, 256, (IMAGES, 3 * 32 * 32), dtype=np.uint8),
            files.labels_key: rng.integers(0, 10, IMAGES).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content, 4))
    names = {files.names_key: [f"class {i}" for i in range(10)]}
    (folder / files.meta).write_bytes(pickle.dumps(names, 4))


def bare_images_per_second(network: Mapping[str, Any], recipe: Recipe, batch_size: int) -> float:
    device = torch.device("cuda")
    model = create_model(**network).to(device).to(memory_format=torch.channels_last).train()
    accelerate(model)
    groups = parameter_groups(model, recipe.weight_decay, orthogonal=recipe.optimizer == "muon")
    optimizer = create_optimizer(recipe, groups)
    images = torch.randn(batch_size, 3, 32, 32, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch_size,), device=device)
    bf16 = auto_precision("cuda") == "bf16-mixed"

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16, cache_enabled=False):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    graph = StepGraph(model, optimizer, whole=True)
    speeds = []
    for _ in range(TURNS + 1):  # the first one records
        begin = time.perf_counter()
        for _ in range(STEPS):
            graph.run(None, (images, labels), step)
        torch.cuda.synchronize()
        speeds.append(STEPS * batch_size / (time.perf_counter() - begin))
    return statistics.median(speeds[1:])


def main() -> None:
    options = parse(parser(__doc__))
    if not torch.cuda.is_available():
        sys.exit("app_gpu: there is no CUDA device")
    settings = compose_settings([*EXPERIMENT, "paths.output_dir=unused"])
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        overrides = (*EXPERIMENT, "trainer=gpu", f"data.root={folder}", f"recipe.epochs={EPOCHS}")
        result, seconds = train(*overrides)
    app = result["images_per_second"]
    bare = bare_images_per_second(result["network"], settings.recipe, settings.data.images)
    figures = {"app images/s": app, "bare images/s": bare, "whole command s": seconds}
    ratio = Ratio("mobilenet_v1 at 32: app / bare", app / bare, BAR, figures)
    conditions = (
        f"{' '.join(EXPERIMENT)}, batch {settings.data.images}, {EPOCHS} epochs of random "
        f"pictures; {auto_precision('cuda')}. {machine('cuda')}"
    )
    claim = "Training images/s of the whole app on a GPU, against bare steps"
    finish(Record("app_gpu", claim, conditions, [ratio], options.arguments), check=options.check)


if __name__ == "__main__":
    main()
