"""Every recipe at one small size: the test accuracy of a narrow MobileNetV1 on CIFAR-10.

All recipes train the same network from the same seeds for the same epochs, on the same pictures
with the same crops and mirror images. Settings of other groups that an experiment adds to its
recipe (augmentation, dropout, clipping) are left out. The papers' recipes are made for a hundred
epochs of ImageNet and more, so this says whether they work, not how good they are. Two references:
a linear classifier of the pixels, which every recipe has to beat, and ``recipe=default``.

    python benchmarks/recipes.py --root data/cifar10    # CIFAR-10 as pictures in folders

Several runs are trained at once, each with an equal part of the cores.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import Ratio, Record, finish, machine, parse, parser
from torch.nn import functional

from dwsep_zoo.config import compose_settings
from dwsep_zoo.report.statistics import Sample
from dwsep_zoo.schema.record import FILE_NAME, read_record
from dwsep_zoo.training import train

REFERENCE = "default"
RECIPES = (
    *(REFERENCE, "adamw", "cifar_modern", "mobilenet_v1_paper", "mobilenet_v2_paper"),
    *("mobilenet_v3_paper", "xception_paper", "efficientnet_paper", "imagenet_modern"),
)
SIDES = ("profile.patience=0", "profile.roofline=false", "logger.pictures=false")
LINEAR_STEPS = 100


def accuracy(case: tuple[str, int], folder: str, words: tuple[str, ...]) -> float:
    """Train once, unless the folder has the run; returns the test accuracy in percent."""
    recipe, seed = case
    run = Path(folder, f"{recipe}-s{seed}")
    if not (run / FILE_NAME).is_file():
        own = (f"recipe={recipe}", f"seed={seed}", f"paths.output_dir={run}")
        train(compose_settings([*own, *words, *SIDES]))
    found = read_record(run / FILE_NAME).metrics["test/acc"]
    assert found is not None
    print(f"{run.name}: {100 * found:.2f} %", flush=True)
    return 100 * found


def linear(root: str) -> float:
    """The test accuracy in percent of multinomial logistic regression on the pixels."""
    (images, labels), (test_images, test_labels) = (
        _pixels(Path(root, split)) for split in ("train", "test")
    )
    weight = torch.zeros(len(labels.unique()), images.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=LINEAR_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(images @ weight.T, labels) + 1e-3 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    right = (test_images @ weight.T).argmax(1) == test_labels
    return 100 * float(right.double().mean())


def _pixels(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels between -1 and 1 with a constant behind them, and labels."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    paths = [(path, label) for label, one in enumerate(classes) for path in sorted(one.iterdir())]
    images = np.stack([np.asarray(Image.open(path).convert("RGB")).ravel() for path, _ in paths])
    rows = torch.from_numpy(images).float() / 127.5 - 1
    return functional.pad(rows, (0, 1), value=1.0), torch.tensor([label for _, label in paths])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--root", default="data/cifar10", help="folder with train/ and test/")
    arguments.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    arguments.add_argument("--width-mult", type=float, default=0.25)
    arguments.add_argument("--epochs", type=int, default=20)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--jobs", type=int, default=2, help="runs at once")
    arguments.add_argument("--keep", help="folder of the runs; finished ones stay")
    options = parse(arguments)
    if not Path(options.root).is_dir():
        arguments.error(f"--root: there is no folder {options.root}")
    words = (
        *("model=mobilenet_v1", f"model.width_mult={options.width_mult}", "trainer=cpu"),
        *("data=folder", f"data.root={options.root}", f"recipe.epochs={options.epochs}"),
        *("model.output_stride=32", "data.batch_size=128", "trainer.limit_val_batches=0"),
        *("trainer.compile=false", "trainer.enable_progress_bar=false"),
    )
    recipes = list(dict.fromkeys([REFERENCE, *options.recipes]))
    cases = [(recipe, seed) for seed in range(options.seeds) for recipe in recipes]
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // options.jobs)
    with tempfile.TemporaryDirectory() as made:
        one = partial(accuracy, folder=options.keep or made, words=words)
        with ProcessPoolExecutor(
            options.jobs, context, torch.set_num_threads, (threads,)
        ) as executor:
            found = dict(zip(cases, executor.map(one, cases), strict=True))
    pixels = linear(options.root)
    samples = {
        recipe: Sample.of([found[recipe, seed] for seed in range(options.seeds)])
        for recipe in recipes
    }
    ratios = [_ratio(recipe, samples, pixels) for recipe in recipes]
    conditions = (
        f"CIFAR-10 as JPEG pictures, mobilenet_v1 at width {options.width_mult:g} and output "
        f"stride 32, {options.epochs} epochs in batches of 128, {options.seeds} seeds: mean test "
        f"error of the last state, standard deviation over the seeds, and the error over that of "
        f"{REFERENCE}. The bar is the error of a linear classifier of the pixels, "
        f"{100 - pixels:.1f} %. {machine()}"
    )
    claim = "Recipes: test error of a narrow MobileNetV1 after few epochs"
    finish(Record("recipes", claim, conditions, ratios, options.arguments), check=options.check)


def _ratio(recipe: str, samples: dict[str, Sample], pixels: float) -> Ratio:
    own, reference = samples[recipe], 100 - samples[REFERENCE].mean
    figures = {"test error %": 100 - own.mean, "std": own.std or 0.0}
    bar = (100 - pixels) / reference
    return Ratio(recipe, (100 - own.mean) / reference, bar, figures, at_most=True)


if __name__ == "__main__":
    main()
