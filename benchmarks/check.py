"""Repeat the recorded measurements to find a loss of speed; exit with 1 if a ratio differs.

    python benchmarks/check.py                       # all records
    python benchmarks/check.py train_speed inference

A ratio differs if it is worse by more than a tenth, is new or is missing. Each benchmark runs with
the options of its record. Use a quiet machine like the one of the record: ratios carry over to
other machines only in part.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from record import DIFFERS_CODE, RESULTS

FOLDER = Path(__file__).parent


def main() -> None:
    recorded = [path.stem for path in sorted(RESULTS.glob("*.json"))]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(recorded)}")
    names = parser.parse_args().names or recorded
    for name in names:
        if name not in recorded:
            parser.error(f"nothing is recorded for {name!r}; recorded are {', '.join(recorded)}")
    if names is recorded and not torch.cuda.is_available():
        names = [name for name in recorded if not name.endswith("_gpu")]
        if left_out := sorted({*recorded} - {*names}):
            print(f"left out, as there is no CUDA device: {', '.join(left_out)}")
    commands = {name: [sys.executable, str(FOLDER / f"{name}.py"), "--check"] for name in names}
    codes = {name: subprocess.run(commands[name]).returncode for name in names}
    failed = [name for name, code in codes.items() if code not in (0, DIFFERS_CODE)]
    differing = [name for name, code in codes.items() if code == DIFFERS_CODE]
    if failed:
        print(f"could not be measured: {', '.join(failed)}")
    if differing:
        print(f"not as recorded: {', '.join(differing)}")
    if not (failed or differing):
        print("all as recorded")
    sys.exit(bool(differing or failed))


if __name__ == "__main__":
    main()
