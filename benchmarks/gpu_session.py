"""All figures of a GPU, the most valuable first, for a machine that is lent for minutes.

Each case is a process of its own with a time limit, and its result is in ``session.json`` the
moment it ends, so that whatever cuts the session off costs the case in progress only.

    python benchmarks/gpu_session.py --minutes 10 --output session --root data/cifar10

The output folder gets ``session.json``; ``CASE/log.txt``, which is written as the case runs; and
``NAME.json`` of each benchmark, to be copied to ``results/`` if its conditions are right, with all
figures of a benchmark of which several cases measure parts. Cases: the app against bare steps, the
time to 94 % of CIFAR-10 (left out if there is no folder of pictures), the speed of MobileNetV2 at
224 and of MobileNetV1 at 32 pixels, and the tests that need a GPU, with the names of those that
fail.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dwsep_zoo.files import atomic_write

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
TAIL = 2000  # characters of a log that are kept beside the result
GRACE = 5  # seconds between the request to end and the end
FAILED_TEST = re.compile(r"^(?:\[gw\d+\] \[ *\d+%\] )?(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", re.M)


@dataclass(frozen=True)
class Case:
    """A process that is run.

    Attributes:
        name: of its folder.
        command: with arguments.
        seconds: the most it may take.
        least: seconds without which it is not begun.
    """

    name: str
    command: Sequence[str]
    seconds: float
    least: float = 20.0


def cases(root: Path) -> list[Case]:
    """In the order of their worth."""

    def script(name: str, *arguments: str) -> list[str]:
        return [sys.executable, str(FOLDER / f"{name}.py"), *arguments]

    found = [Case("app", script("app_gpu"), 150)]
    if root.is_dir():
        command = script("time_to_accuracy_gpu", "--root", str(root))
        found.append(Case("time_to_accuracy", command, 240, least=60))
    for network in ("mobilenet_v2", "mobilenet_v1"):
        found.append(Case(network, script("train_gpu", "--only", network), 120))
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "4", "-v", "--tb=short"]
    found.append(Case("tests", [*tests, "-p", "no:cacheprovider", "tests"], 240))
    return found


def run(case: Case, folder: Path, seconds: float) -> dict[str, Any]:
    """Run a case and return what is known about it."""
    folder.mkdir(parents=True, exist_ok=True)
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "BENCHMARK_RESULTS": str(folder),
        "PYTHONPATH": os.pathsep.join(places),
        "PYTHONUNBUFFERED": "1",
    }
    begin = time.monotonic()
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            case.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment,
            start_new_session=True,  # so that its workers end with it
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    status = "cut off" if code is None else "failed" if code else "done"
    result: dict[str, Any] = {
        "status": status,
        "seconds": round(time.monotonic() - begin, 1),
        "exit_code": code,
        "records": records(folder),
    }
    if failed := sorted(set(FAILED_TEST.findall(text))):
        result["failed_tests"] = failed
    if status != "done":
        result["log_ends_with"] = text[-TAIL:]
    return result


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for number, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def merged(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The records of all cases by name; parts of one benchmark as one record."""
    found: dict[str, dict[str, Any]] = {}
    for result in results.values():
        for record in result.get("records", []):
            before = found.get(record["name"])
            ratios = [*before["ratios"], *record["ratios"]] if before else record["ratios"]
            arguments = [] if before else record["arguments"]
            found[record["name"]] = {**record, "ratios": ratios, "arguments": arguments}
    return found


def session(given: Sequence[Case], output: Path, minutes: float) -> dict[str, Any]:
    """Run the cases one after the other; returns what is in ``session.json``."""
    output.mkdir(parents=True, exist_ok=True)
    limit = time.monotonic() + 60 * minutes
    results: dict[str, Any] = {case.name: {"status": "not begun"} for case in given}

    def keep() -> None:
        content = {"minutes": minutes, "cases": results}
        atomic_write(output / "session.json", json.dumps(content, indent=2) + "\n")
        for name, record in merged(results).items():
            atomic_write(output / f"{name}.json", json.dumps(record, indent=2) + "\n")

    for case in given:
        left = limit - time.monotonic()
        if left < case.least:
            results[case.name] = {"status": "no time left"}
        else:
            results[case.name] = {"status": "running"}
            keep()
            results[case.name] = run(case, output / case.name, min(left, case.seconds))
        keep()
        print(summary(case.name, results[case.name]), flush=True)
    return results


def summary(name: str, result: Mapping[str, Any]) -> str:
    """A case in a few lines."""
    lines = [f"{name}: {result['status']}" + (f", {s} s" if (s := result.get("seconds")) else "")]
    for record in result.get("records", []):
        for ratio in record["ratios"]:
            figures = ", ".join(f"{key} {value:.5g}" for key, value in ratio["figures"].items())
            lines.append(f"  {ratio['case']}: {ratio['value']:.3g} ({figures})")
    lines += [f"  failed: {test}" for test in result.get("failed_tests", [])]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="for all cases together")
    parser.add_argument("--output", type=Path, default=Path("session"), help="folder")
    parser.add_argument("--root", type=Path, default=Path("data/cifar10"), help="of the pictures")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the case ends, too
    results = session(cases(options.root.resolve()), options.output.resolve(), options.minutes)
    sys.exit(any(result["status"] != "done" for result in results.values()))


if __name__ == "__main__":
    main()
