"""Memory of training from shards of more and more data.

Pictures of ImageNet's shape are packed twice: a small set, and one many times as large. One epoch
of each is trained in a process of its own with two workers. The memory is the most that these three
processes allocate at once. Pages of files do not count: the system takes them back when it needs
them. Linux only.

    python benchmarks/shard_memory.py       # prints a table and writes results/shard_memory.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from input_speed import SHAPE, create, generate
from record import Ratio, Record, finish, machine, parse, parser

from dwsep_zoo.data.pack import pack

BAR = 1.1
TRAIN = Path(__file__).parents[1] / "train.py"
SIZE = 64
WORDS = (
    *("model=mobilenet_v1_shallow", "model.width_mult=0.125", "trainer=cpu", "data=webdataset"),
    *(f"data.image_size={SIZE}", "data.num_workers=2", "trainer.max_epochs=1", "test=false"),
    *("trainer.limit_val_batches=0", "profile.patience=0", "profile.roofline=false"),
    *("trainer.enable_progress_bar=false", "logger.pictures=false"),
)


def shards(folder: Path, pictures: int, copies: int) -> Path:
    """Pack a set in which every picture comes under several names."""
    root = folder / f"pictures-{copies}"
    generate(root, pictures)
    for path in sorted(root.glob("*/*.jpg")):
        for number in range(1, copies):
            os.link(path, path.with_name(f"{path.stem}-{number}.jpg"))
    packed = folder / f"shards-{copies}"
    pack(create("folder", root, 128), packed, 256_000_000)
    return packed


def allocated(process: int) -> int:
    """Bytes of a process and its descendants that no file can give back."""
    found = 0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                found += 1000 * int(line.split()[1])
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has ended
        return found
    return found + sum(allocated(int(child)) for child in children)


def peak(root: Path, folder: Path) -> int:
    """Train one epoch and return the most bytes at once."""
    command = [sys.executable, str(TRAIN), *WORDS, f"data.root={root}", f"hydra.run.dir={folder}"]
    most = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        while running.poll() is None:
            most = max(most, allocated(running.pid))
            time.sleep(0.1)
    if running.returncode:
        sys.exit(f"the training failed: {' '.join(command)}")
    return most


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pictures", type=int, default=2_000)
    arguments.add_argument("--copies", type=int, default=24, help="of each, in the large set")
    options = parse(arguments)
    gigabytes, memory = [], []
    with tempfile.TemporaryDirectory() as made:
        for copies in (1, options.copies):
            root = shards(Path(made), options.pictures, copies)
            gigabytes.append(sum(path.stat().st_size for path in root.iterdir()) / 1e9)
            memory.append(peak(root, Path(made, f"run-{copies}")) / 1e9)
            print(f"{gigabytes[-1]:.2f} GB of shards: {memory[-1]:.2f} GB", flush=True)
    figures = {
        "large set GB": gigabytes[1],
        "small set GB": gigabytes[0],
        "memory, large GB": memory[1],
        "memory, small GB": memory[0],
    }
    case = f"a set {gigabytes[1] / gigabytes[0]:.0f} times as large: memory / memory"
    ratio = Ratio(case, memory[1] / memory[0], BAR, figures, at_most=True)
    conditions = (
        f"The most memory of a training and its two workers at once, pages of files aside; one "
        f"epoch of {options.pictures} and of {options.pictures * options.copies} JPEG pictures of "
        f"{SHAPE[0]} x {SHAPE[1]} pixels, resized to {SIZE}. {machine()}"
    )
    claim = "Training from shards: memory against the size of the set"
    record = Record("shard_memory", claim, conditions, [ratio], options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
