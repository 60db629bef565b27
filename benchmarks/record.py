"""Common parts of the benchmarks: ratios with bars, recorded, shown, and compared with the record.

A benchmark measures one claim. It begins with :func:`parse` and ends with :func:`finish`, which
writes ``results/NAME.json``, the source of the table in the documentation; another folder can be
given by the environment variable ``BENCHMARK_RESULTS``. With ``--check`` nothing
is written: it measures with the options of the record, and exits with 3 if a ratio is worse by more
than a tenth, is missing or is new. ``check.py`` does this for all records.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from dwsep_zoo.analysis.device import device_name
from dwsep_zoo.training.trainer import auto_precision

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", Path(__file__).parent / "results"))
WORSE = 0.1  # allowed loss, as a part of the recorded ratio
DIFFERS_CODE = 3  # exit code, different from that of an error


@dataclass(frozen=True)
class Ratio:
    """One side of a claim relative to another.

    Attributes:
        case: the network and its relevant settings.
        value: the ratio.
        bar: the required ratio; ``None``: no requirement.
        figures: the measured numbers, with their units in the names.
        at_most: whether small ratios are good.
    """

    case: str
    value: float
    bar: float | None
    figures: Mapping[str, float]
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def worse_than(self, recorded: Ratio) -> bool:
        """Whether more than a tenth is lost; NaN is worse than any number."""
        if self.at_most:
            return not self.value <= recorded.value * (1 + WORSE)
        return not self.value >= recorded.value * (1 - WORSE)


@dataclass(frozen=True)
class Record:
    """The ratios of one claim and their conditions.

    Attributes:
        name: name of the script.
        arguments: command-line arguments of the script.
    """

    name: str
    claim: str
    conditions: str = ""
    ratios: Sequence[Ratio] = ()
    arguments: Sequence[str] = ()

    @property
    def path(self) -> Path:
        return RESULTS / f"{self.name}.json"

    def table(self) -> str:
        """Return the table in Markdown."""
        figures = list(dict.fromkeys(key for ratio in self.ratios for key in ratio.figures))
        lines = [
            f"| case | {' | '.join(figures)} | ratio | bar |",
            f"|---|{'--:|' * (len(figures) + 2)}",
        ]
        for ratio in self.ratios:
            cells = [_number(ratio.figures[f]) if f in ratio.figures else "" for f in figures]
            lines.append(
                f"| {ratio.case} | {' | '.join(cells)} | {ratio.value:.3g} | {_bar(ratio)} |"
            )
        return "\n".join(lines)

    def page(self) -> str:
        """Return a section of a page in Markdown."""
        command = shlex.join(["python", f"benchmarks/{self.name}.py", *self.arguments])
        return f"### {self.claim}\n\n{self.table()}\n\n{self.conditions}\n`{command}`\n"

    def differences(self, recorded: Record) -> list[str]:
        """List the ratios that are worse than recorded, new or missing, in words."""
        now, before = ({ratio.case: ratio for ratio in r.ratios} for r in (self, recorded))
        return [
            *(f"{case}: is not in the record" for case in now if case not in before),
            *(f"{case}: is recorded, but measured no more" for case in before if case not in now),
            *(
                f"{case}: {now[case].value:.3g}, was {before[case].value:.3g}"
                for case in now
                if case in before and now[case].worse_than(before[case])
            ),
        ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _bar(ratio: Ratio) -> str:
    if ratio.bar is None:
        return ""
    return f"{'<=' if ratio.at_most else '>='} {ratio.bar:g}{'' if ratio.met else ', **missed**'}"


def load(path: Path) -> Record:
    values = json.loads(path.read_text(encoding="utf-8"))
    ratios = [Ratio(**ratio) for ratio in values.pop("ratios")]
    return Record(**values, ratios=ratios)


def records() -> list[Record]:
    """Return all records, sorted by name."""
    return [load(path) for path in sorted(RESULTS.glob("*.json"))]


def machine(device: str = "cpu") -> str:
    """Describe the machine.

    A product name says little: virtual machines with the same processor name multiply bfloat16
    matrices at rates that differ by a factor of two.
    """
    dtype = torch.bfloat16 if auto_precision(device) == "bf16-mixed" else torch.float32
    return (
        f"{device_name(torch.device(device))}, {torch.get_num_threads()} threads, "
        f"{_gflop_s(device, dtype):,.0f} GFLOP/s in large products of "
        f"{str(dtype).removeprefix('torch.')} matrices; "
        f"torch {torch.__version__}, Python {platform.python_version()}."
    )


def _gflop_s(device: str, dtype: torch.dtype) -> float:
    size = 2048 if device == "cpu" else 8192
    a = torch.randn(size, size, dtype=dtype, device=device)
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange(min_run_time=1).median / 1e9


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Make the parser of a benchmark's command line."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--check", action="store_true", help="compare with the recorded ratios")
    return made


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the options and keep the command line as ``arguments``.

    With ``--check`` the options of the record come first. Without a record the program exits.
    """
    script, *arguments = sys.argv
    options = parser.parse_args(arguments)
    if options.check:
        path = RESULTS / f"{Path(script).stem}.json"
        if not path.exists():
            sys.exit(f"{path.stem}: nothing is recorded yet; run it without --check first")
        options = parser.parse_args([*load(path).arguments, *arguments])
    options.arguments = arguments
    return options


def finish(record: Record, *, check: bool) -> None:
    """Print the record; write it, or with ``check`` exit with 3 if a ratio differs."""
    print(f"\n{record.page()}")
    if not check:
        text = json.dumps(asdict(record), indent=2)
        record.path.write_text(text + "\n", encoding="utf-8")
        return
    differences = record.differences(load(record.path))
    for difference in differences:
        print(f"{record.name}: {difference}")
    if differences:
        sys.exit(DIFFERS_CODE)
