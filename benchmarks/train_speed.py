"""Training images/s at CIFAR size: this project against the loop that CIFAR repositories share.

Three sides train the same network on the same pictures in turns. The pictures are random, because
the speed does not depend on their content:

* common: NCHW, float32, eager; PIL pictures through torchvision's RandomCrop, RandomHorizontalFlip,
  ToTensor and Normalize in a DataLoader with 2 workers; PyTorch's depthwise kernels; SGD. It has
  its own process, as only this project's sides tell the C library to keep freed memory.
* loop: this project's computation in a bare Python loop: pictures in memory, augmented a batch at a
  time, channels_last, bfloat16 where the hardware is fast at it, fused SGD, and compiled where
  ``trainer.compile=auto`` would compile a long training.
* app: the same through Lightning, with the callbacks, metrics and logs of ``train.py``.

    python benchmarks/train_speed.py            # prints a table and writes results/train_speed.json

The strides are those of the CIFAR repositories. Run it on a quiet machine. A ratio compares medians
over steps. The steps of networks and sides alternate in blocks, so that they share transient load,
which may last minutes. ``train_speed_fp32.py`` does this in float32.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from record import Ratio, Record, finish, machine, parse, parser
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dwsep_zoo import accelerate, create_model
from dwsep_zoo.config import compose_settings
from dwsep_zoo.data.module import ImageData
from dwsep_zoo.data.splits import Images, Labelled
from dwsep_zoo.ops import plain_kernels
from dwsep_zoo.schema.settings import Recipe
from dwsep_zoo.training.callbacks import EpochTable
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.compile import Compile, Decision, choose_compile, compiled_forward
from dwsep_zoo.training.optim import create_optimizer, create_schedule, parameter_groups
from dwsep_zoo.training.process_memory import keep_memory
from dwsep_zoo.training.trainer import auto_precision, create_trainer

BATCH = 128
NETWORKS = (
    ("mobilenet_v1", 16, 3.0),
    ("mobilenet_v2", 8, 3.5),
    ("efficientnet_b0", 16, 3.0),
    ("xception", 16, 2.5),
)
"""Name, output stride, and the bar for app / common."""
FP32_BAR = 1.5  # for app / common in float32
APP_BAR = 0.97  # for app / loop
CLAIM = "images/s against the loop that CIFAR repositories share"
PICTURES = 6_000
WARM_UP = 3  # uncounted steps at the beginning of each block
Step = Callable[[], None]
Times = Callable[[int], list[float]]
"""Runs a number of steps and returns the seconds of each."""


class RandomPictures(Dataset[tuple[Any, int]]):
    """Random pictures: PIL images for the common loop, and a source for this project."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.pixels = generator.integers(0, 256, (PICTURES, 32, 32, 3), dtype=np.uint8)
        self.labels = np.arange(PICTURES, dtype=np.int64) % 10
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
            ]
        )

    def __len__(self) -> int:
        return PICTURES

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])

    def prepare(self) -> None:
        """There is nothing to download."""

    def load(self) -> Labelled:
        names = [str(i) for i in range(PICTURES)]
        images = Images(names, self.labels, torch.from_numpy(self.pixels))
        return Labelled([str(i) for i in range(10)], {"train": images})


def random_data(pictures: RandomPictures) -> ImageData:
    settings = compose_settings(["data=cifar10"]).data.replace(batch_size=BATCH, test_fraction=0.2)
    data = ImageData(settings, pictures, seed=0, data_dir=Path("unused"))
    data.setup()
    return data


def forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def common(network: dict[str, Any], pictures: RandomPictures) -> Step:
    model = create_model(**network)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        pictures, BATCH, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
    )
    batches = forever(loader)

    def step() -> None:
        images, labels = next(batches)
        with plain_kernels():
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def serve(network: dict[str, Any]) -> None:
    """Run the common loop: for each number of steps on standard input, print their times."""
    step = common(network, RandomPictures())
    for line in sys.stdin:
        print(json.dumps(timed(step, int(line))), flush=True)


@contextmanager
def common_process(network: dict[str, Any]) -> Iterator[Times]:
    """Run the common loop in another process."""
    command = [sys.executable, __file__, "--serve", json.dumps(network)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        requests, answers = process.stdin, process.stdout
        assert requests is not None
        assert answers is not None

        def times(steps: int) -> list[float]:
            print(steps, file=requests, flush=True)
            return json.loads(answers.readline())

        yield times
        requests.close()


def bare_loop(
    network: dict[str, Any], data: ImageData, recipe: Recipe, precision: str, compiled: bool
) -> Step:
    model = accelerate(create_model(**network).to(memory_format=torch.channels_last))
    forward = compiled_forward(model, torch.device("cpu")) if compiled else model
    optimizer = create_optimizer(recipe, parameter_groups(model, recipe.weight_decay))
    schedule = create_schedule(optimizer, recipe, steps=10**6, epoch_steps=10**6)
    batches = forever(data.train_dataloader())

    def step() -> None:
        images, labels = data.prepare_batch(next(batches))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = forward(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    return step


class StepTimes(L.Callback):
    """Record the seconds between the ends of training steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.ends.append(time.perf_counter())


def app(
    network: dict[str, Any], data: ImageData, steps: int, compiled: bool, precision: str = "auto"
) -> list[float]:
    """Run one short training with all parts of ``train.py``."""
    with tempfile.TemporaryDirectory() as folder:
        settings = compose_settings(
            [
                *("trainer=cpu", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"),
                *("trainer.limit_val_batches=0", f"trainer.limit_train_batches={steps}"),
                *(f"trainer.precision={precision}", f"paths.output_dir={folder}"),
            ]
        )
        times = StepTimes()
        table = EpochTable(Path(folder) / "metrics.csv")
        compiling = Compile(compiled, (3, data.image_size, data.image_size), BATCH)
        trainer = create_trainer(settings, Path(folder), [table, compiling, times], first_step=0)
        model = create_model(**network).to(memory_format=torch.channels_last)
        module = LitClassifier(
            accelerate(model),
            num_classes=10,
            recipe=settings.recipe,
            seed=0,
            description={"model": network},
        )
        trainer.fit(module, datamodule=data)
    return [b - a for a, b in zip(times.ends, times.ends[1:], strict=False)]


def timed(step: Step, steps: int) -> list[float]:
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return times


def choose(eager: Step, compiled: Step) -> Decision:
    """Compile the steps as the app does for a long training."""
    one, other = (lambda step=step: timed(step, 1)[0] for step in (eager, compiled))
    return choose_compile("auto", math.inf, one, other)


@contextmanager
def sides(
    network: dict[str, Any], data: ImageData, recipe: Recipe, precision: str
) -> Iterator[tuple[dict[str, Times], Decision]]:
    """Measure the steps of each side, and whether this project's are compiled."""
    loops = [bare_loop(network, data, recipe, precision, compiled) for compiled in (False, True)]
    choice = choose(*loops)
    loop = loops[choice.compiled]
    del loops
    with common_process(network) as of_common:
        yield (
            {
                "common": lambda steps: of_common(steps + WARM_UP)[WARM_UP:],
                "loop": lambda steps: timed(loop, steps + WARM_UP)[WARM_UP:],
                "app": lambda steps: app(
                    network, data, steps + WARM_UP, choice.compiled, precision
                )[WARM_UP - 1 :],
            },
            choice,
        )


def measure(
    rounds: int, steps: int, precision: str
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return median images/s of each network and side, and the networks with compiled steps."""
    pictures = RandomPictures()
    data = random_data(pictures)
    recipe = compose_settings().recipe.replace(warmup_fraction=1e-5)
    with ExitStack() as stack:
        of: dict[str, dict[str, Times]] = {}
        compiled = []
        for name, stride, _ in NETWORKS:
            network = {"name": name, "num_classes": 10, "output_stride": stride}
            of[name], choice = stack.enter_context(sides(network, data, recipe, precision))
            print(f"{name}: {choice.why}", flush=True)
            compiled += [name] if choice.compiled else []
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for number in range(rounds):
            for name, times in of.items():
                for side, measured in times.items():
                    found[name, side] += measured(steps)
            print(f"round {number + 1} of {rounds}", flush=True)
    speed = {
        name: {side: BATCH / statistics.median(found[name, side]) for side in of[name]}
        for name in of
    }
    return speed, compiled


def main(precision: str, record: Record) -> None:
    """Measure with Lightning's ``precision`` and complete the record."""
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=4)
    arguments.add_argument("--steps", type=int, default=12)
    arguments.add_argument("--serve", type=json.loads, help="be the process of the common loop")
    options = parse(arguments)
    if options.serve:
        serve(options.serve)
        return
    keep_memory()
    speed, compiled = measure(options.rounds, options.steps, precision)
    ratios = []
    for network, stride, bar in NETWORKS:
        case = f"{network}, output stride {stride}"
        figures = {f"{side} images/s": value for side, value in speed[network].items()}
        bar = FP32_BAR if precision == "32-true" else bar
        for other, least in (("common", bar), ("loop", APP_BAR)):
            ratio = speed[network]["app"] / speed[network][other]
            ratios.append(Ratio(f"{case}: app / {other}", ratio, least, figures))
    conditions = (
        f"Medians over {options.rounds} x {options.steps} steps, networks and sides in turns; "
        f"batch {BATCH}, 3 x 32 x 32, width 1. app and loop: {precision}, "
        f"channels_last, compiled: {', '.join(compiled) or 'none'}; "
        f"common: float32, NCHW, PIL pictures, 2 workers, its own process. {machine()}"
    )
    made = replace(record, conditions=conditions, ratios=ratios, arguments=options.arguments)
    finish(made, check=options.check)


if __name__ == "__main__":
    main(auto_precision("cpu"), Record("train_speed", f"Training at CIFAR size: {CLAIM}"))
