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
{code}
seconds = time.perf_counter() - begin
assert not {{"lightning", "hydra"}} & set(sys.modules), "lightning or hydra was loaded"
print(seconds)
"""


def seconds(code: str) -> float:
    command = [sys.executable, "-c", CODE.format(code=code)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    times: dict[str, list[float]] = {
        "import dwsep_zoo": [],
        "from dwsep_zoo import create_model": [],
        "import torch": [],
    }
    for _ in range(7):
        for code, values in times.items():
            values.append(seconds(code))
    lines = ["# Import time", "", "| code | median s |", "|---|--:|"]
    lines += [f"| `{code}` | {statistics.median(values):.2f} |" for code, values in times.items()]
    lines += ["", "Medians of 7 processes in turns, files cached. `create_model` needs torch."]
    text = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / "import_time.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
