"""Two trainings at once against one after the other, and one alone against OpenMP's own waiting.

Runs ``train.py`` as two users would who know nothing of each other and set nothing. Threads that
wait for others spin, unless the cores are needed. Two trainings whose threads always spin take the
cores from each other. ``own waiting`` sets the variable that has them do so.

    python benchmarks/neighbours.py         # prints a table and writes results/neighbours.json

Run it on a quiet machine. Rounds alternate the three cases. The ratio of times is of whole
commands, the ratio of images/s is of the median epochs of a training.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record import Ratio, Record, finish, machine, parse, parser

TRAIN = Path(__file__).parents[1] / "train.py"
OVERRIDES = ("model=mobilenet_v1", "model.width_mult=0.25", "trainer=cpu")
OWN_WAITING = {"GOMP_SPINCOUNT": "300000"}
"""OpenMP's own value, which this project leaves alone once it is set."""
AT_ONCE, ALONE = 1.15, 0.99  # bars
MOST = 20  # times as long as one alone: more is not waited for


def train(count: int, variables: Mapping[str, str], limit: float | None = None) -> dict[str, Any]:
    """Run trainings at once; return the seconds of all and the images/s of the first."""
    names = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        runs = [
            subprocess.Popen(
                [sys.executable, str(TRAIN), *OVERRIDES, f"hydra.run.dir={folder}/{i}"],
                env={**environment, **variables},
                stdout=subprocess.DEVNULL,
            )
            for i in range(count)
        ]
        try:
            codes = [run.wait(limit) for run in runs]
        finally:
            for run in runs:
                run.kill()
        seconds = time.perf_counter() - begin
        if any(codes):
            sys.exit(f"train.py ended with {codes}")
        result = json.loads((Path(folder) / "0" / "result.json").read_text(encoding="utf-8"))
    return {"seconds": seconds, "speed": result["images_per_second"]}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    options = parse(arguments)
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(options.rounds):
        one = train(1, {})
        row = {
            "one": one,
            "own": train(1, OWN_WAITING),
            "two": train(2, {}, MOST * one["seconds"]),
        }
        rounds.append(row)
        print(f"round {number + 1} of {options.rounds}: {row}", flush=True)

    def median(case: str, figure: str) -> float:
        return statistics.median(row[case][figure] for row in rounds)

    ratios = [
        Ratio(
            "two at once: time / one after the other",
            statistics.median(r["two"]["seconds"] / (2 * r["one"]["seconds"]) for r in rounds),
            AT_ONCE,
            {"two at once, s": median("two", "seconds"), "one alone, s": median("one", "seconds")},
            at_most=True,
        ),
        Ratio(
            "one alone: images/s / with OpenMP's own waiting",
            statistics.median(r["one"]["speed"] / r["own"]["speed"] for r in rounds),
            ALONE,
            {"images/s": median("one", "speed"), "own waiting, images/s": median("own", "speed")},
        ),
    ]
    conditions = (
        f"`train.py {' '.join(OVERRIDES)}` on digits. Medians of {options.rounds} rounds, the "
        f"cases in turns. {machine()}"
    )
    claim = "Neighbours: two trainings at once against one after the other"
    record = Record("neighbours", claim, conditions, ratios, options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
