"""Import time of ``dwsep_zoo``, and the modules it must not load.

Each time is measured in a new process with cached files. ``import dwsep_zoo`` alone loads nothing
large, so a ratio of its few milliseconds would be noise. The first use of its names loads torch,
so it is compared with ``import torch``.

    python benchmarks/import_time.py        # prints a table and writes results/import_time.json
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from record import Ratio, Record, finish, machine, parse, parser

CODE = """
import sys, time
begin = time.perf_counter()
{code}
seconds = time.perf_counter() - begin
assert not {{"lightning", "hydra"}} & set(sys.modules), "lightning or hydra was loaded"
print(seconds)
"""
OURS = "import dwsep_zoo"
USE = "from dwsep_zoo import create_model"
TORCH = "import torch"


def seconds(code: str) -> float:
    command = [sys.executable, "-c", CODE.format(code=code)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=7)
    options = parse(arguments)
    rounds = [{code: seconds(code) for code in (OURS, USE, TORCH)} for _ in range(options.rounds)]
    median = {code: statistics.median(row[code] for row in rounds) for code in rounds[0]}
    ratio = Ratio(
        f"{USE} / {TORCH}",
        median[USE] / median[TORCH],
        None,
        {f"{code}, s": value for code, value in median.items()},
        at_most=True,
    )
    conditions = f"Medians of {options.rounds} processes in turns, files cached. {machine()}"
    claim = "Import: seconds of this package against those of torch"
    record = Record("import_time", claim, conditions, [ratio], options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
