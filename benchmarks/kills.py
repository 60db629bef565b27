"""Kill trainings with SIGKILL, let them go on, and compare their ends with uninterrupted ones.

    python benchmarks/kills.py
    python benchmarks/kills.py --kills 4 --only 'digits*' --keep kept

Each case is trained once without interruption. Then it is trained again and again, each time killed
once and repeated with the same command (``resume=auto``) until it is finished: at a random moment
of the whole run, in the write of a checkpoint, between the first epoch and the last, and in the
test and the measurements at the end. Two processes are killed together. What is compared, bit for
bit: weights, averages and states of optimizers in the last and the best checkpoint,
``metrics.csv``, predictions, and the record without what is measured by a clock.

The networks are tiny and each process has one thread. ``--keep`` names a folder for the runs.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import Ratio, Record, finish, machine, parse, parser

from dwsep_zoo.commands.train import run_train
from dwsep_zoo.config import compose_settings
from dwsep_zoo.data import create_data
from dwsep_zoo.data.pack import pack
from dwsep_zoo.signals import stopping

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 4
TIMEOUT_S = 900
STARTS = 4  # until a killed run is finished
BASE = (
    *("model=mobilenet_v1_shallow", "model.width_mult=0.125", "data.batch_size=16"),
    *(f"trainer.max_epochs={EPOCHS}", "trainer.limit_train_batches=6", "trainer.accelerator=cpu"),
    *("trainer.precision=32-true", "profile.patience=0", "profile.roofline=false"),
    *("logger.pictures=false", "model.drop_rate=0.2", "recipe.norm_statistics=running"),
)
DATA = {
    "digits": ("data=digits",),
    "files": ("data=folder", "data.root=pictures", "data.in_memory=false", "data.num_workers=1"),
    "map": ("data=folder", "data.root=pictures", "data.in_memory=false", "data.cache=true"),
    "shards": ("data=webdataset", "data.root=shards", "data.in_memory=false", "data.num_workers=2"),
}
TWO = ("trainer=ddp", "trainer.devices=2")
PRECISE = "recipe.norm_statistics=precise"
EMA = "recipe.model_ema_decay=0.9"
CASES: dict[str, tuple[str, ...]] = {
    "digits, sgd": (*DATA["digits"], "recipe.optimizer=sgd"),
    "digits, muon, average": (*DATA["digits"], "recipe.optimizer=muon", EMA),
    "digits, adamw": (*DATA["digits"], "recipe=adamw", PRECISE),
    "digits, sgd, average, 2 processes": (*DATA["digits"], EMA, *TWO),
    "files, sgd, average": (*DATA["files"], EMA),
    "files, adamw": (*DATA["files"], "recipe=adamw"),
    "files, muon, 2 processes": (*DATA["files"], "recipe.optimizer=muon", *TWO),
    "shards, sgd, average": (*DATA["shards"], EMA),
    "shards, muon, 2 processes": (*DATA["shards"], "recipe.optimizer=muon", *TWO),
    "memory map, muon": (*DATA["map"], "recipe.optimizer=muon"),
    "memory map, adamw, average": (*DATA["map"], "recipe=adamw", EMA, PRECISE),
    "memory map, adamw, average, 2 processes": (*DATA["map"], "recipe=adamw", EMA, *TWO),
}
MOMENTS = ("any", "write", "epochs", "end")
MEASURED = (
    *("name", "config", "started", "process", "command", "latency", "memory", "finished", "time"),
    *("images_per_second", "git_commit"),
)
"""Keys of a record that may differ between two runs of the same command in two folders."""


@dataclass(frozen=True)
class Timing:
    """Seconds from the beginning of a run's log to its first epoch, its last, and its end."""

    first: float
    last: float
    end: float


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=40, help="over all cases")
    arguments.add_argument("--only", default="*", help="pattern of the cases' names")
    arguments.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments.add_argument("--keep", type=Path, help="folder of the runs")
    options = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    FORKS.set_forkserver_preload(["dwsep_zoo.training", "dwsep_zoo.config", "matplotlib"])
    names = [name for name in CASES if fnmatch(name, options.only)]
    if not names:
        sys.exit(f"--only: there is no such case; there are: {'; '.join(CASES)}")
    draw = random.Random(options.seed)
    place = nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory()
    with place as folder:
        work = Path(folder).absolute()
        write_pictures(work / "pictures")
        write_shards(work / "pictures", work / "shards")
        ratios = [
            ratio_of(name, work, len(range(number, options.kills, len(names))), number, draw)
            for number, name in enumerate(names)
        ]
    claim = "Killed trainings that go on end as uninterrupted ones, bit for bit"
    conditions = f"Tiny networks, {EPOCHS} epochs, one thread a process. {machine()}"
    made = [ratio for ratio in ratios if ratio]
    record = Record("kills", claim, conditions, made, options.arguments)
    finish(record, check=options.check)


def ratio_of(name: str, work: Path, kills: int, first: int, draw: random.Random) -> Ratio | None:
    """Kill a case so often, beginning with another moment in each; the part that ended alike."""
    if not kills:
        return None
    slug = "".join(letter if letter.isalnum() else "_" for letter in name)
    whole = work / f"{slug}-whole"
    for _ in range(2):  # the first one builds kernels and a memory map, if need be
        shutil.rmtree(whole, ignore_errors=True)
        timing = uninterrupted(work, whole, CASES[name])
    wanted = ends(whole)
    found: Counter[str] = Counter()
    for number in range(kills):
        moment = MOMENTS[(first + number) % len(MOMENTS)]
        folder = work / f"{slug}-{number}"
        hit = kill_once(work, folder, CASES[name], moment, timing, draw)
        starts = go_on(work, folder, CASES[name])
        differing = differences(wanted, ends(folder))
        alike = not differing
        found.update({f"killed in {hit}": 1, "alike": int(alike), "starts": starts})
        print(
            f"{name}: killed in {hit}, finished by start {starts + 1}: "
            f"{'identical' if alike else 'DIFFERS in ' + ', '.join(differing)}",
            flush=True,
        )
    figures = {"kills": kills, "identical": found["alike"]}
    figures |= {where: found[f"killed in {where}"] for where in PLACES}
    return Ratio(name, found["alike"] / kills, 1.0, {k: float(v) for k, v in figures.items()})


PLACES = ("before the first epoch", "a checkpoint", "an epoch", "test or measurement")


def where_is(folder: Path) -> str:
    """What a run is at, by the files it has left."""
    rows = table(folder)
    if any((folder / "checkpoints").glob("*.part")):
        return PLACES[1]
    return PLACES[0] if not rows else PLACES[3] if len(rows) == EPOCHS else PLACES[2]


class Training:
    """A training in a process group of its own, with what it says in a file beside its folder.

    Processes that have imported everything are forked from one that does nothing else. Several
    processes are begun by a command line, which Lightning repeats.
    """

    def __init__(self, work: Path, folder: Path, words: Sequence[str]):
        place = [f"paths.output_dir={folder}", f"paths.data_dir={folder.parent / 'data'}"]
        line = [*BASE, *words, *place, "resume=auto"]
        log = folder.with_suffix(".log")
        if "trainer=ddp" in words:
            command = [sys.executable, str(ROOT / "train.py"), *line]
            with log.open("a") as said:
                self.process = subprocess.Popen(
                    command, cwd=work, stdout=said, stderr=said, start_new_session=True
                )
            self.pid = self.process.pid
        else:
            self.forked = FORKS.Process(target=train, args=(str(work), str(log), line))
            self.forked.start()
            self.pid = int(self.forked.pid or 0)

    def wait(self, seconds: float) -> int | None:
        """The exit code, or ``None`` if it has not ended after so long."""
        if hasattr(self, "forked"):
            self.forked.join(seconds)
            return self.forked.exitcode
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode

    @property
    def runs(self) -> bool:
        return self.wait(0) is None

    def kill(self) -> None:
        """Kill it and what it started, and wait until they are gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(60)
        deadline = time.monotonic() + 3  # one that nobody waits for stays known to the system
        with suppress(ProcessLookupError, PermissionError):
            while time.monotonic() < deadline:
                os.killpg(self.pid, 0)
                time.sleep(0.01)


FORKS = multiprocessing.get_context("forkserver")


def train(work: str, log: str, line: list[str]) -> None:
    """What ``train.py`` does, in a process that was forked."""
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as in other processes
    os.setsid()
    os.chdir(work)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["train.py", *line]
    with stopping():
        run_train()


def uninterrupted(work: Path, folder: Path, words: Sequence[str]) -> Timing:
    times = []
    training = Training(work, folder, words)
    wait_for(folder / "train.log", training)
    begin = time.monotonic()
    for number in (1, EPOCHS):
        while len(table(folder)) < number and training.runs:
            time.sleep(0.02)
        times.append(time.monotonic() - begin)
    if training.wait(TIMEOUT_S) != 0:
        sys.exit(f"{folder} did not finish; see {folder.with_suffix('.log')}")
    return Timing(times[0], times[1], time.monotonic() - begin)


def wait_for(file: Path, training: Training) -> None:
    while not file.exists() and training.runs:
        time.sleep(0.002)


def kill_once(
    work: Path, folder: Path, words: Sequence[str], moment: str, timing: Timing, draw: random.Random
) -> str:
    """Kill a new run of a case; it begins again if it was finished before the moment came."""
    for attempt in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        training = Training(work, folder, words)
        wait_for(folder / "train.log", training)
        if moment == "write":
            wait_for_write(folder, training, draw.randrange(2 * EPOCHS))
            wait = draw.uniform(0, 0.004)
        elif moment == "any":
            wait = draw.uniform(0, timing.end)
        else:
            wanted = 1 if moment == "epochs" else EPOCHS
            while len(table(folder)) < wanted and training.runs:
                time.sleep(0.005)
            span = timing.last - timing.first if wanted == 1 else timing.end - timing.last
            wait = draw.uniform(0, span)
        # Beside other programs the run that was timed may have been slower than this one.
        if training.wait(wait * 0.7**attempt) is None:
            training.kill()
            return where_is(folder)
    sys.exit(f"{folder} was always finished before it could be killed")


def wait_for_write(folder: Path, training: Training, number: int) -> None:
    """Wait for a later write of a checkpoint, of which each epoch has one or two."""
    seen: set[tuple[str, int]] = set()
    while len(seen) <= number and training.runs:
        for part in (folder / "checkpoints").glob("*.ckpt.*.part"):
            try:
                seen.add((part.name, part.stat().st_ino))
            except FileNotFoundError:
                continue


def go_on(work: Path, folder: Path, words: Sequence[str]) -> int:
    """Repeat the command until the run is finished; how often that was."""
    for number in range(1, STARTS + 1):
        if Training(work, folder, words).wait(TIMEOUT_S) == 0:
            return number
    sys.exit(f"{folder} did not finish; see {folder.with_suffix('.log')}")


def table(folder: Path) -> list[dict[str, str]]:
    try:
        with (folder / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def ends(folder: Path) -> dict[str, Any]:
    """What a run left, without what a clock measured."""
    left: dict[str, Any] = {}
    for name in ("last", "best"):
        saved = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        left[f"{name}: weights"] = saved["state_dict"]
        left[f"{name}: optimizer"] = [saved["optimizer_states"], saved["lr_schedulers"]]
        left[f"{name}: progress"] = [saved["epoch"], saved["global_step"]]
        left[f"{name}: callbacks"] = {
            key: state
            for key, state in saved["callbacks"].items()
            if not key.startswith(("OneFile", "EpochTable", "Compile"))  # paths, times, words
        }
    varying = ("images_per_second", "seconds")
    rows = table(folder)
    left["metrics.csv"] = [{k: v for k, v in row.items() if k not in varying} for row in rows]
    with np.load(folder / "predictions.npz") as predictions:
        left["predictions"] = {
            k: torch.frombuffer(bytearray(v.tobytes()), dtype=torch.uint8)
            for k, v in predictions.items()
        }
    record = json.loads((folder / "result.json").read_text())
    left["result.json"] = {k: v for k, v in record.items() if k not in MEASURED}
    left["files"] = [path.name for path in folder.rglob("*.part")]
    return left


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in one if not same(one[key], other[key])]


def same(one: object, other: object) -> bool:
    """Whether nested values are the same, tensors to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def write_pictures(folder: Path) -> None:
    """Three classes of noise around a grey value, 60 pictures each."""
    noise = np.random.default_rng(0)
    for label, level in enumerate((60, 120, 180)):
        for number in range(60):
            pixels = noise.normal(level, 40, (40, 48, 3)).clip(0, 255).astype(np.uint8)
            file = folder / f"class{label}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():  # they are part of the data's fingerprint
                Image.fromarray(pixels).save(file)


def write_shards(pictures: Path, to: Path) -> None:
    """The pictures in about ten archives."""
    if not to.exists():
        settings = compose_settings(["data=folder", f"data.root={pictures}"])
        pack(create_data(settings.data, seed=0, data_dir=str(to.parent / "data")), to, 100_000)


if __name__ == "__main__":
    main()
