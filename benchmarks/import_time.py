"""Seconds that ``import dwsep_zoo`` takes, and what it must not load.

python benchmarks/import_time.py            # prints and writes results/import_time.md
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

CODE = """
import sys, time
begin = time.perf_counter()
import {name}
seconds = time.perf_counter() - begin
assert not {{"lightning", "hydra"}} & set(sys.modules), "lightning or hydra was loaded"
print(seconds)
"""


def seconds(name: str) -> float:
    command = [sys.executable, "-c", CODE.format(name=name)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    times: dict[str, list[float]] = {"torch": [], "dwsep_zoo": []}
    for _ in range(7):
        for name, values in times.items():
            values.append(seconds(name))
    lines = ["# Import time", "", "| module | median s |", "|---|--:|"]
    lines += [f"| `import {name}` | {statistics.median(v):.2f} |" for name, v in times.items()]
    lines += ["", "Medians of 7 processes in turns, files cached. dwsep_zoo includes torch."]
    text = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / "import_time.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
