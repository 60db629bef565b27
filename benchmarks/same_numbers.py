"""Whether a change of the code changes numbers: trainings, counts and reports of two commits.

    python benchmarks/same_numbers.py --against 3d39815
    python benchmarks/same_numbers.py --against 3d39815 --only 'pictures*' --keep golden

The other commit gets a temporary worktree. The same command lines run there and in this checkout,
uncommitted changes included, each in a process with one thread and no GPU. Compared bit for bit are
the weights of the last checkpoint, ``metrics.csv`` but for speed and time, the metrics of the test,
parameters and multiply-adds, and what stands at the head of each column of a report. There is one
line a case; the exit code is 1 where one differs. With ``--keep`` what the other commit computed is
kept in a folder and not computed again, as long as the case, processor and PyTorch are the same.

Only command lines and names from ``dwsep_zoo`` itself are used, so that any two commits compare.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "runs"
"""Runs of an earlier version, that both commits report on and go on from."""
DIFFERS_CODE = 1
VARYING = ("images_per_second", "seconds")
"""Columns of ``metrics.csv`` that differ between two runs of the same code."""
STEPS = 100  # of an epoch of the run that is interrupted
ATTEMPTS = 6  # to interrupt it within an epoch
TIMEOUT_S = 3600

Observed = dict[str, Any]
"""What a case gave in one tree, as JSON."""
Observe = Callable[[Path, Path, tuple[str, ...]], Observed]
"""Does a case with the code of a tree, in a folder of its own."""


class Failed(Exception):
    """A process that should have worked did not, or a promise within one commit is broken."""


@dataclass(frozen=True)
class Case:
    """What is done in each of the two trees.

    Attributes:
        arguments: what it depends on, besides the tree.
    """

    name: str
    arguments: tuple[str, ...]
    observe: Observe


def environment(tree: Path) -> dict[str, str]:
    """Of a process that takes the package from ``tree``, with one thread and no GPU."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    own = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **threads, **own}


def python(tree: Path, folder: Path, *arguments: str) -> str:
    """What Python prints, run in a folder with the code of a tree."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(tree),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise Failed(f"exit code {done.returncode}: {last}")
    return done.stdout


def train(tree: Path, folder: Path, overrides: Sequence[str]) -> Observed:
    """One run of ``train.py``."""
    python(tree, folder, str(tree / "train.py"), *overrides)
    return trained(folder)


def trained(folder: Path) -> Observed:
    """The numbers of the one run below a folder."""
    (file,) = folder.glob("logs/**/result.json")
    record = json.loads(file.read_text(encoding="utf-8"))
    with (file.parent / "metrics.csv").open(encoding="utf-8", newline="") as lines:
        rows = [{k: v for k, v in r.items() if k not in VARYING} for r in csv.DictReader(lines)]
    return {
        "weights": weights(file.parent),
        "metrics.csv": {row["epoch"]: row for row in rows},
        "test": {k: v for k, v in record["metrics"].items() if k.startswith("test/")},
        "params": record["params"],
        "macs": record["macs"],
    }


def checkpoint(run: Path) -> dict[str, Any]:
    path = run / "checkpoints" / "last.ckpt"
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def weights(run: Path) -> dict[str, str]:
    """A digest of each tensor of the network with which a run ended."""
    return {name: digest(tensor) for name, tensor in checkpoint(run)["state_dict"].items()}


def digest(tensor: torch.Tensor) -> str:
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    short = hashlib.sha256(content.numpy().tobytes()).hexdigest()[:16]
    return f"{tensor.dtype} {list(tensor.shape)} {short}"


def interrupted(tree: Path, folder: Path, overrides: Sequence[str]) -> Observed:
    """A run that was stopped within an epoch and went on; it has to end as one that was not."""
    whole = train(tree, folder / "whole", overrides)
    stopped = stop_within_epoch(tree, folder, overrides)
    resumed = train(tree, stopped, ["resume=last"])
    if found := differences(whole, resumed):
        raise Failed(f"the interrupted run ends otherwise than the whole one: {in_short(found)}")
    return resumed


def stop_within_epoch(tree: Path, folder: Path, overrides: Sequence[str]) -> Path:
    """Interrupt a run after its first epoch, later each time until it is not between two epochs."""
    for attempt in range(ATTEMPTS):
        stopped = folder / f"stopped-{attempt}"
        stop_after_epoch(tree, stopped, overrides, delay=0.1 * 2**attempt)
        (file,) = stopped.glob("logs/**/result.json")
        status = json.loads(file.read_text(encoding="utf-8"))["status"]
        if status == "interrupted" and checkpoint(file.parent)["global_step"] % STEPS:
            return stopped
    raise Failed(f"no signal of {ATTEMPTS} came within an epoch")


def stop_after_epoch(tree: Path, folder: Path, overrides: Sequence[str], delay: float) -> None:
    folder.mkdir(parents=True)
    command = [sys.executable, str(tree / "train.py"), *overrides]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(tree),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and not begun(folder):
            time.sleep(0.02)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)


def begun(folder: Path) -> bool:
    """Whether the first epoch of the run below a folder is over, and saved."""
    runs = [file.parent for file in folder.glob("logs/**/metrics.csv")]
    return any(
        "\n1," in (run / "metrics.csv").read_text(encoding="utf-8")
        and (run / "checkpoints" / "last.ckpt").exists()
        for run in runs
    )


STRUCTURE = """
import hashlib, json, sys
import torch
import dwsep_zoo

found = {}
for name in dwsep_zoo.list_models():
    for conv in dwsep_zoo.list_convs():
        with torch.device("meta"):
            model = dwsep_zoo.create_model(name, conv=conv, num_classes=10)
        shapes = [[key, list(value.shape)] for key, value in model.state_dict().items()]
        cost = dwsep_zoo.count(model, (3, 64, 64))
        found[f"{name} {conv}"] = {
            "names and shapes": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
            "params": cost.params,
            "macs": cost.macs,
        }
json.dump(found, sys.stdout)
"""


def structure(tree: Path, folder: Path, arguments: Sequence[str]) -> Observed:
    """Names and shapes of the weights, parameters and multiply-adds of networks by name."""
    found: Observed = json.loads(python(tree, folder, "-c", *arguments))
    return found


def report(tree: Path, folder: Path, arguments: Sequence[str]) -> Observed:
    """The heads of the columns in each format of a report on runs, and the rows of its CSV."""
    fixtures, *options = arguments
    shutil.copytree(FIXTURES / fixtures, folder / "runs")
    python(tree, folder, "-c", dwsep(tree), "compare", "runs", "out=report", *options)
    made = {
        name: (folder / "report" / f"comparison.{name}").read_text(encoding="utf-8")
        for name in ("csv", "md", "tex", "html")
    }
    heads = HeadTexts()
    heads.feed(made["html"])
    header, *rows = csv.reader(made["csv"].splitlines())
    return {
        "CSV": header,
        "Markdown": [
            [cell.strip() for cell in head.split("|")]
            for head in re.findall(r"^\|(.*)\|\n\|[ :|-]+\|$", made["md"], re.MULTILINE)
        ],
        "TeX": [
            [cell.strip() for cell in head.split("&")]
            for head in re.findall(r"\\toprule(.*?)\\\\\s*\\midrule", made["tex"], re.DOTALL)
        ],
        "HTML": heads.texts,
        "CSV rows": [dict(zip(header, row, strict=True)) for row in rows],
    }


def dwsep(tree: Path) -> str:
    """Python code that is the command ``dwsep``, as the tree declares it."""
    text = (tree / "pyproject.toml").read_text(encoding="utf-8")
    entry = re.search(r'^dwsep = "([\w.]+):(\w+)"$', text, re.MULTILINE)
    if entry is None:
        raise Failed("pyproject.toml declares no command dwsep")
    return f"from {entry[1]} import {entry[2]}; {entry[2]}()"


class HeadTexts(HTMLParser):
    """Collects the texts of a page's ``<th>``."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "th":
            self.inside = True
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "th":
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data


SOURCES = {
    "memory": "data.in_memory=true",
    "cache": "data.in_memory=false data.cache=true",
    "files": "data.in_memory=false",
}
RECIPES = {
    "sgd": "recipe.optimizer=sgd",
    "adamw": "recipe=adamw",
    "muon": "recipe.optimizer=muon recipe.model_ema_decay=0.9 recipe.initial_size=32",
    "finetune": "recipe=finetune",
}


def cases() -> Iterator[Case]:
    for name in ("mobilenet_v1", "mobilenet_v2", "xception"):
        for conv in ("standard", "depthwise_separable"):
            arguments = f"model={name} conv={conv} trainer.max_epochs=3"
            yield trains(f"digits {name} {conv}", f"{arguments} +trainer.limit_train_batches=8")
    pictures = "data=folder data.root=../../pictures data.image_size=48 data.batch_size=16"
    for source, options in SOURCES.items():
        for number, (recipe, overrides) in enumerate(RECIPES.items()):
            workers = f"data.num_workers={number % 2 * 2}" if source == "files" else ""
            arguments = f"model=mobilenet_v1 trainer.max_epochs=2 {pictures} {options} {workers}"
            yield trains(f"pictures {source} {recipe}", f"{arguments} {overrides}")
    network = "model=mobilenet_v2 model.drop_rate=0.5 recipe.model_ema_decay=0.9"
    length = f"trainer.max_epochs=3 +trainer.limit_train_batches={STEPS} data.batch_size=8"
    yield trains("interrupted and resumed", f"{network} {length}", interrupted)
    earlier = "model=mobilenet_v1_shallow model.pretrained=../../runs/finished recipe=finetune"
    yield trains("weights of an earlier run", f"{earlier} trainer.max_epochs=2", width=0.125)
    yield Case("structure", (STRUCTURE,), structure)
    yield Case("report on a sweep", ("sweep",), report)
    yield Case("report on all runs", (".", "by=conv"), report)


def trains(name: str, overrides: str, observe: Observe = train, width: float = 0.25) -> Case:
    """A case of small trainings. Compiling is off: that is decided by measuring."""
    quick = "trainer=cpu trainer.compile=false profile.roofline=false logger.tensorboard=false"
    arguments = f"{quick} model.width_mult={width} {overrides}"
    return Case(name, tuple(arguments.split()), observe)


def make_pictures(folder: Path) -> None:
    """120 pictures of three classes, stripes of a direction and tint in noise: JPEG and PNG."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:72, 0:64]
    for label, name in enumerate(("across", "along", "aslant")):
        (folder / name).mkdir(parents=True)
        phase = (rows, columns, rows + columns)[label]
        for number in range(40):
            noise = generator.normal(0, 30, (72, 64, 3))
            stripes = 60 * np.sin(phase / generator.uniform(2, 4))[..., None]
            pixels = (128 + stripes + noise + 20 * (np.arange(3) == label)).clip(0, 255)
            suffix = "png" if number % 2 else "jpg"
            picture = Image.fromarray(pixels.astype(np.uint8))
            picture.save(folder / name / f"{number:03}.{suffix}")


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Dotted names of the places at which two JSON values are not the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        both: Any = [(key, one.get(key), other.get(key)) for key in {**one, **other}]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        both = [(number, *pair) for number, pair in enumerate(zip(one, other, strict=True))]
    else:
        # NaN differs from itself; as text it does not.
        return [] if json.dumps(one) == json.dumps(other) else [where or "all"]
    return [
        found
        for key, a, b in both
        for found in differences(a, b, f"{where}: {key}" if where else str(key))
    ]


def in_short(names: Sequence[str]) -> str:
    """The first of the names of each kind, and how many others there are."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(name.partition(": ")[0], []).append(name)
    return "; ".join(
        first + (f" and {len(others)} more" if others else "") for first, *others in kinds.values()
    )


def conditions() -> list[str]:
    """What bits may depend on, besides the code."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.M) if info.exists() else []
    capability = torch.backends.cpu.get_cpu_capability()
    return [*names[:1], capability, torch.__version__, np.__version__]


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """A commit's files, for as long as the context lasts."""
    tree = folder / "tree"
    git("worktree", "add", "--detach", str(tree), commit)
    try:
        yield tree
    finally:
        git("worktree", "remove", "--force", str(tree))


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def slug(case: Case) -> str:
    return case.name.replace(" ", "-")


def attempt(case: Case, tree: Path, folder: Path) -> Observed | str:
    """What a case gives, or why it gives nothing."""
    place = folder / slug(case)
    place.mkdir(parents=True)
    try:
        return case.observe(tree, place, case.arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def golden(case: Case, tree: Path, folder: Path, keep: Path) -> Observed | str:
    """What a case gives in the other commit's tree, taken from ``keep`` if it is there."""
    file = keep / f"{slug(case)}.json"
    key = [list(case.arguments), conditions()]
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == key:
            observed: Observed = kept["observed"]
            return observed
    found = attempt(case, tree, folder)
    if not isinstance(found, str):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"key": key, "observed": found}) + "\n", encoding="utf-8")
    return found


def verdict(before: Observed | str, now: Observed | str) -> str:
    """In one line; ``equal`` if nothing differs."""
    if isinstance(before, str):
        return f"DIFFERENT: the other commit: {before}"
    if isinstance(now, str):
        return f"DIFFERENT: here: {now}"
    found = differences(json.loads(json.dumps(before)), json.loads(json.dumps(now)))
    return f"DIFFERENT: {in_short(found)}" if found else "equal"


def parse() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--against", default="3d39815", metavar="COMMIT")
    made.add_argument("--only", default="*", metavar="PATTERN", help="of names of cases: 'digits*'")
    made.add_argument("--keep", type=Path, metavar="DIR", help="of what the other commit computed")
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases at a time")
    made.add_argument("--check", action="store_true", help="as every script here: with a record")
    options = made.parse_args()
    if options.check:
        sys.exit("same_numbers: nothing is recorded yet; run it without --check")
    return options


def main() -> None:
    options = parse()
    commit = git("rev-parse", f"{options.against}^{{commit}}")
    chosen = [case for case in cases() if fnmatch(case.name, options.only)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "pictures")
        shutil.copytree(FIXTURES, folder / "runs")
        keep = (options.keep or folder / "keep").resolve() / commit

        def compared(case: Case) -> str:
            before = golden(case, tree, folder / "before", keep)
            return verdict(before, attempt(case, ROOT, folder / "now"))

        with worktree(commit, folder) as tree, ThreadPoolExecutor(options.jobs) as pool:
            verdicts = []
            for case, found in zip(chosen, pool.map(compared, chosen), strict=True):
                print(f"{case.name}: {found}", flush=True)
                verdicts.append(found)
    if not verdicts:
        sys.exit(f"no case is called {options.only!r}")
    equal = verdicts.count("equal")
    print(f"{equal} of {len(verdicts)} cases are equal to {commit[:7]}")
    if equal < len(verdicts):
        sys.exit(DIFFERS_CODE)


if __name__ == "__main__":
    main()
