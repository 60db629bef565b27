"""Images/s of the input alone: torchvision, files, shards and the memory map.

The script generates random JPEG pictures of ImageNet's shape (500 x 375, smooth, about 70 kB). All
sides make training batches of 224 pixels from them, in turns, with a process per core:

* torchvision: ``ImageFolder``, ``RandomResizedCrop``, ``RandomHorizontalFlip``, ``ToTensor`` and
  ``Normalize`` in a ``DataLoader``.
* folder: ``data=folder``, whose processes decode, crop and mirror each picture likewise; its pixels
  differ from Pillow's by at most 4 of 255 levels (``tests/data/test_crop.py``).
* shards: ``data=webdataset``, the same pictures packed by ``dwsep data pack``.
* map: ``data=folder data.cache=true``, one gather from the map, augmentation in batches.

All deliver normalised float32 images on the device. The files fit into the page cache, so the disk
is not measured.

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
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

from dwsep_zoo.config import compose_settings
from dwsep_zoo.data import ImageData, create_data
from dwsep_zoo.data.pack import pack
from dwsep_zoo.models.convnet import IMAGENET_MEAN, IMAGENET_STD
from dwsep_zoo.training.process_memory import keep_memory

SHAPE = (500, 375)
SIDE = 224
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


def create(name: str, root: Path, batch_size: int, *, cache: bool = False) -> ImageData:
    settings = compose_settings([f"data={name}"]).data.replace(
        root=str(root), image_size=SIDE, batch_size=batch_size, cache=cache
    )
    data = create_data(settings, seed=0, data_dir=root.parent / "data")
    data.prepare_data()
    data.setup()
    return data


def theirs(root: Path, batch_size: int) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """torchvision's data set and transforms, as its references train ImageNet."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE, interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return DataLoader(
        ImageFolder(str(root), transform),
        batch_size,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        drop_last=True,
        persistent_workers=True,
    )


def their_batches(
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]], device: torch.device
) -> Generator[int, None, None]:
    """Likewise, of torchvision's."""
    while True:
        for images, _ in loader:
            moved = images.to(device)
            if device.type == "cuda":
                torch.cuda.synchronize()
            yield len(moved)


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


BARS = (("folder", "torchvision", 1.5), ("map", "torchvision", 4.5), ("shards", "folder", 0.9))
"""Two sides, and the least ratio of their images/s."""


def speed(source: Generator[int, None, None], seconds: float) -> float:
    """Measure images/s for at least ``seconds``. Workers exist for one turn only."""
    with closing(source):
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
    device, batch_size = torch.device(options.device), options.batch_size
    keep_memory()  # as train.py does

    with tempfile.TemporaryDirectory() as name:
        pictures, shards = Path(name, "pictures"), Path(name, "shards")
        num_bytes = generate(pictures, options.pictures)
        begin = time.perf_counter()
        mapped = create("folder", pictures, batch_size, cache=True)
        build = time.perf_counter() - begin
        folder = create("folder", pictures, batch_size)
        pack(folder, shards, 64_000_000)
        own = {
            "folder": folder,
            "shards": create("webdataset", shards, batch_size),
            "map": mapped,
        }
        loader = theirs(pictures, batch_size)
        rounds = []
        for _ in range(options.rounds):
            row = {"torchvision": speed(their_batches(loader, device), options.seconds)}
            for side, data in own.items():
                row[side] = speed(batches(data, device), options.seconds)
            rounds.append(row)

    median = {side: statistics.median(row[side] for row in rounds) for side in rounds[0]}
    found = [
        Ratio(
            f"{SIDE} pixels, {device.type}: {one} / {other}",
            statistics.median(row[one] / row[other] for row in rounds),
            bar,
            {f"{side} images/s": median[side] for side in (one, other)},
        )
        for one, other, bar in BARS
    ]
    spread = ", ".join(
        f"{one} {min(values):.2f} to {max(values):.2f}"
        for one, other, _ in BARS
        if (values := [row[one] / row[other] for row in rounds])
    )
    conditions = (
        f"Median ratios of {options.rounds} rounds ({spread}) of {options.seconds:g} s a side, in "
        f"turns; batch {batch_size}, {os.cpu_count()} worker processes; {options.pictures} "
        f"pictures of {SHAPE[0]} x {SHAPE[1]} pixels and {num_bytes / 1e3:.0f} kB. The map of 256 "
        f"pixels was built in {build:.0f} s; a batch from it is of the pictures' middle squares. "
        f"All files lie in memory. {machine(options.device)}"
    )
    claim = "Input: images/s against torchvision's DataLoader, and of shards against files"
    record = Record("input_speed", claim, conditions, found, options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
