"""Images/s of the input alone: worker processes that decode files against the memory map.

The script generates random JPEG pictures of ImageNet's shape (500 x 375, smooth, about 50 kB). Both
sides make the same training batches of 224 pixels from them, in turns:

* workers: ``data=folder``, one process per core decodes and augments each picture.
* map: ``data=folder data.cache=true``, one gather from the map, augmentation in batches.

Both deliver normalised float32 images on the device. The map is built once and timed separately. It
fits into the page cache, so the disk is not measured.

    python benchmarks/input_speed.py            # prints a table and writes results/input_speed.json
    python benchmarks/input_speed.py --device cuda
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from PIL import Image
from record import Ratio, Record, finish, machine, parse, parser

from dwsep_zoo.config import compose_settings
from dwsep_zoo.data import ImageData, create_data
from dwsep_zoo.training.process_memory import keep_memory

SHAPE = (500, 375)
AHEAD = 2  # batches that each worker prepares in advance


def generate(root: Path, count: int) -> float:
    """Write the pictures and return their mean size in bytes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        path = root / f"class{i % 4}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize(SHAPE, Image.Resampling.BICUBIC).save(path, quality=90)
    return statistics.mean(path.stat().st_size for path in root.glob("*/*.jpg"))


def create(folder: Path, batch_size: int, *, cache: bool) -> ImageData:
    settings = compose_settings(["data=folder"]).data.replace(
        root=str(folder / "pictures"), image_size=224, batch_size=batch_size, cache=cache
    )
    data = create_data(settings, seed=0, data_dir=folder / "data")
    data.prepare_data()
    data.setup()
    return data


def batches(data: ImageData, device: torch.device) -> Generator[int, None, None]:
    """Yield the images of each batch on the device, epoch after epoch."""
    loader = data.train_dataloader()
    for epoch in itertools.count():
        loader.batch_sampler.sampler.set_epoch(epoch)
        for batch in loader:
            moved = move_data_to_device(batch, device)
            images, _ = data.prepare_batch(moved)
            if device.type == "cuda":
                torch.cuda.synchronize()
            yield len(images)


def speed(data: ImageData, device: torch.device, seconds: float) -> float:
    """Measure images/s for at least ``seconds``. Workers exist for one turn only."""
    with closing(batches(data, device)) as source:
        for _ in range(AHEAD * (os.cpu_count() or 1) + 1):
            next(source)
        begin, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - begin) < seconds:
            count += next(source)
        return count / passed


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--pictures", type=int, default=2_000)
    arguments.add_argument("--batch-size", type=int, default=128)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=10.0, help="of each side in each round")
    options = parse(arguments)
    device = torch.device(options.device)
    keep_memory()  # as train.py does

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_bytes = generate(folder / "pictures", options.pictures)
        begin = time.perf_counter()
        mapped = create(folder, options.batch_size, cache=True)
        build = time.perf_counter() - begin
        sides = {
            "workers": create(folder, options.batch_size, cache=False),
            "map": mapped,
        }
        rounds = [
            {side: speed(data, device, options.seconds) for side, data in sides.items()}
            for _ in range(options.rounds)
        ]

    median = {side: statistics.median(row[side] for row in rounds) for side in sides}
    ratios = [row["map"] / row["workers"] for row in rounds]
    ratio = Ratio(
        f"224 pixels, {device.type}: map / workers",
        statistics.median(ratios),
        None,
        {f"{side} images/s": value for side, value in median.items()},
    )
    conditions = (
        f"Median ratio of {options.rounds} rounds ({min(ratios):.1f} to {max(ratios):.1f}) of "
        f"{options.seconds:g} s a side, in turns; batch {options.batch_size}, {os.cpu_count()} "
        f"worker processes; {options.pictures} pictures of {SHAPE[0]} x {SHAPE[1]} pixels and "
        f"{num_bytes / 1e3:.0f} kB. The map of 256 pixels was built in {build:.0f} s and lies in "
        "memory. A worker's batch is what torchvision's and Pillow's functions make of the whole "
        f"picture, the map's of its middle square. {machine(options.device)}"
    )
    claim = "Input: images/s of a memory map against workers that decode files"
    record = Record("input_speed", claim, conditions, [ratio], options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
