"""Compare the numbers of two commits bit for bit: trainings, counts and reports.

    python benchmarks/same_numbers.py --against 3d39815
    python benchmarks/same_numbers.py --against 3d39815 --only 'pictures*' --keep golden

The same command lines run in a worktree of the other commit and in this checkout, including its
uncommitted changes. Each run is a process with one thread and no GPU. The comparison covers the
weights in the last checkpoint, ``metrics.csv`` except speed and time, the test metrics, parameters,
multiply-adds, and the column heads of each report format. Each case prints one line; the exit code
is 1 if any case differs.

``--keep`` stores the results of the other commit in a folder. They are reused while the case, the
processor and PyTorch stay the same. ``--tree`` names an existing checkout of the other commit.

The script uses only command lines and names from ``dwsep_zoo`` itself, so it can compare any two
commits.
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
from contextlib import contextmanager, nullcontext
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
"""Runs of an earlier version; both commits report on them and resume or fine-tune them."""
DIFFERS_CODE = 1
VARYING = ("images_per_second", "seconds")
"""Columns of ``metrics.csv`` that differ between two runs of the same code."""
STEPS = 100  # of an epoch of the run that is interrupted
ATTEMPTS = 6  # to interrupt it within an epoch
TIMEOUT_S = 3600

Observed = dict[str, Any]
"""Result of a case in one tree, as JSON values."""
Observe = Callable[[Path, Path, tuple[str, ...]], Observed]
"""Runs a case with the code of a tree, in its own folder: (tree, folder, arguments)."""


class Failed(Exception):
    """A process failed, or one commit contradicts itself."""


@dataclass(frozen=True)
class Case:
    """One comparison, run in each of the two trees.

    Attributes:
        arguments: passed to ``observe``; results are kept for the same arguments only.
    """

    name: str
    arguments: tuple[str, ...]
    observe: Observe


def environment(tree: Path) -> dict[str, str]:
    """Return the environment of a process with the package of ``tree``, one thread and no GPU."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    own = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **threads, **own}


def python(tree: Path, folder: Path, *arguments: str) -> str:
    """Run Python in a folder with the code of a tree and return its output."""
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
    """Run ``train.py`` once and return its numbers."""
    python(tree, folder, str(tree / "train.py"), *overrides)
    return trained(folder)


def trained(folder: Path) -> Observed:
    """Return the numbers of the one run below a folder."""
    return numbers(run_below(folder))


def run_below(folder: Path) -> Path:
    """Return the folder of the one run below ``logs``."""
    (file,) = folder.glob("logs/**/result.json")
    return file.parent


def numbers(run: Path) -> Observed:
    """Read the numbers of a run that must not change."""
    record = json.loads((run / "result.json").read_text(encoding="utf-8"))
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as lines:
        rows = [{k: v for k, v in r.items() if k not in VARYING} for r in csv.DictReader(lines)]
    return {
        "weights": weights(run),
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
    """Return a digest of each tensor in the last checkpoint's state dict."""
    return {name: digest(tensor) for name, tensor in checkpoint(run)["state_dict"].items()}


def digest(tensor: torch.Tensor) -> str:
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    short = hashlib.sha256(content.numpy().tobytes()).hexdigest()[:16]
    return f"{tensor.dtype} {list(tensor.shape)} {short}"


def interrupted(tree: Path, folder: Path, overrides: Sequence[str]) -> Observed:
    """Stop a run within an epoch, resume it, and require the result of an uninterrupted run.

    The training loss and accuracy of the resumed epoch cover only the steps after the resume, so
    these columns are left out.
    """
    whole = train(tree, folder / "whole", overrides)
    stopped = stop_within_epoch(tree, folder, overrides)
    resumed = train(tree, stopped, ["resume=last"])
    for observed in (whole, resumed):
        for row in observed["metrics.csv"].values():
            del row["train/loss"], row["train/acc"]
    if found := differences(whole, resumed):
        raise Failed(f"resumed and uninterrupted runs differ: {in_short(found)}")
    return resumed


def stop_within_epoch(tree: Path, folder: Path, overrides: Sequence[str]) -> Path:
    """Interrupt a run after its first epoch; try later moments until one is within an epoch."""
    for attempt in range(ATTEMPTS):
        stopped = folder / f"stopped-{attempt}"
        stop_after_epoch(tree, stopped, overrides, delay=0.1 * 2**attempt)
        run = run_below(stopped)
        status = json.loads((run / "result.json").read_text(encoding="utf-8"))["status"]
        if status == "interrupted" and checkpoint(run)["global_step"] % STEPS:
            return stopped
    raise Failed(f"none of {ATTEMPTS} signals arrived within an epoch")


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
    """Return whether the run below a folder has finished and saved its first epoch."""
    runs = [file.parent for file in folder.glob("logs/**/metrics.csv")]
    return any(
        "\n1," in (run / "metrics.csv").read_text(encoding="utf-8")
        and (run / "checkpoints" / "last.ckpt").exists()
        for run in runs
    )


def resumed_fixture(tree: Path, folder: Path, arguments: Sequence[str]) -> Observed:
    """Resume a run of an earlier version."""
    run = folder / "run"
    shutil.copytree(FIXTURES / arguments[0], run)
    python(tree, folder, str(tree / "train.py"), "resume=run")
    return numbers(run)


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
    """Return a digest of the state dict's keys and shapes, and the counts, of every network."""
    found: Observed = json.loads(python(tree, folder, "-c", *arguments))
    return found


def report(tree: Path, folder: Path, arguments: Sequence[str]) -> Observed:
    """Return the column heads of each report format, and the rows of the CSV."""
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
    """Return Python code that runs the command ``dwsep`` as the tree declares it."""
    text = (tree / "pyproject.toml").read_text(encoding="utf-8")
    entry = re.search(r'^dwsep = "([\w.]+):(\w+)"$', text, re.MULTILINE)
    if entry is None:
        raise Failed("pyproject.toml declares no command dwsep")
    return f"from {entry[1]} import {entry[2]}; {entry[2]}()"


class HeadTexts(HTMLParser):
    """Collect the texts of a page's ``<th>`` elements."""

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
    yield Case("resume of an earlier run", ("interrupted",), resumed_fixture)
    yield Case("structure", (STRUCTURE,), structure)
    yield Case("report on a sweep", ("sweep",), report)
    yield Case("report on all runs", (".", "by=conv"), report)


def trains(name: str, overrides: str, observe: Observe = train, width: float = 0.25) -> Case:
    """Make a case of small trainings, without ``compile``, whose default depends on timings."""
    quick = "trainer=cpu trainer.compile=false profile.roofline=false logger.tensorboard=false"
    arguments = f"{quick} model.width_mult={width} {overrides}"
    return Case(name, tuple(arguments.split()), observe)


def make_pictures(folder: Path) -> None:
    """Write 120 noisy pictures, half JPEG and half PNG; stripes and tint show one of 3 classes."""
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
    """Return the paths at which two JSON values differ."""
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
    """Join the first name of each kind, with the number of others."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(name.partition(": ")[0], []).append(name)
    return "; ".join(
        first + (f" and {len(others)} more" if others else "") for first, *others in kinds.values()
    )


def conditions() -> list[str]:
    """Return the processor and library versions, on which bits may depend."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.M) if info.exists() else []
    capability = torch.backends.cpu.get_cpu_capability()
    return [*names[:1], capability, torch.__version__, np.__version__]


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """Make a temporary worktree of a commit."""
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
    """Run a case and return its result, or the error as text."""
    place = folder / slug(case)
    place.mkdir(parents=True)
    try:
        return case.observe(tree, place, case.arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def golden(case: Case, tree: Path, folder: Path, keep: Path) -> Observed | str:
    """Return the result of a case with the other commit's tree, from ``keep`` if stored there."""
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
    """Describe the first differences in one line; ``equal`` if there are none."""
    if isinstance(before, str):
        return f"DIFFERENT: the other commit: {before}"
    if isinstance(now, str):
        return f"DIFFERENT: here: {now}"
    found = differences(json.loads(json.dumps(before)), json.loads(json.dumps(now)))
    return f"DIFFERENT: {in_short(found)}" if found else "equal"


def parse() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--against", default="3d39815", metavar="COMMIT")
    made.add_argument("--only", default="*", metavar="PATTERN", help="cases to run: 'digits*'")
    made.add_argument("--keep", type=Path, metavar="DIR", help="store results of the commit")
    made.add_argument("--tree", type=Path, metavar="DIR", help="an existing checkout of the commit")
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases at a time")
    made.add_argument("--check", action="store_true", help="an error: nothing is recorded")
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

        place = nullcontext(options.tree.resolve()) if options.tree else worktree(commit, folder)
        with place as tree, ThreadPoolExecutor(options.jobs) as pool:
            verdicts = []
            for case, found in zip(chosen, pool.map(compared, chosen), strict=True):
                print(f"{case.name}: {found}", flush=True)
                verdicts.append(found)
    if not verdicts:
        sys.exit(f"no case matches {options.only!r}; cases: {', '.join(c.name for c in cases())}")
    equal = verdicts.count("equal")
    print(f"{equal} of {len(verdicts)} cases are equal to {commit[:7]}")
    if equal < len(verdicts):
        sys.exit(DIFFERS_CODE)


if __name__ == "__main__":
    main()
