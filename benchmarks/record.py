"""What the benchmarks share: ratios with their bars, recorded, shown, and compared with the record.

A benchmark measures one claim and ends with :func:`finish`. By default that writes
``results/NAME.json``, from which the table in the documentation is made. With ``--check`` nothing
is written; the ratios are compared with those recorded, and the exit code is 3 if one of them has
become worse by more than a tenth. ``check.py`` does that for all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dwsep_zoo.analysis.latency import device_name

RESULTS = Path(__file__).parent / "results"
WORSE = 0.1  # part of a recorded ratio that may be lost
WORSE_CODE = 3  # to the shell: not that of an error


@dataclass(frozen=True)
class Ratio:
    """One side of a claim relative to another.

    Attributes:
        case: what was measured: a network, with what matters of it.
        value: the ratio.
        bar: what it has to be; ``None``: nothing was promised.
        figures: what it is the ratio of, with its unit in the name.
        at_most: whether small ratios are good ones.
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
        """Whether more than a tenth is lost."""
        if self.at_most:
            return self.value > recorded.value * (1 + WORSE)
        return self.value < recorded.value * (1 - WORSE)


@dataclass(frozen=True)
class Record:
    """The ratios of one claim, and the conditions without which they mean nothing."""

    name: str
    claim: str
    conditions: str
    ratios: Sequence[Ratio]

    @property
    def path(self) -> Path:
        return RESULTS / f"{self.name}.json"

    def table(self) -> str:
        """In Markdown."""
        figures = list(dict.fromkeys(key for ratio in self.ratios for key in ratio.figures))
        lines = [
            f"| case | {' | '.join(figures)} | ratio | bar |",
            f"|---|{'--:|' * (len(figures) + 2)}",
        ]
        for ratio in self.ratios:
            cells = [f"{ratio.figures[f]:,.4g}" if f in ratio.figures else "" for f in figures]
            lines.append(
                f"| {ratio.case} | {' | '.join(cells)} | {ratio.value:.3g} | {_bar(ratio)} |"
            )
        return "\n".join(lines)

    def page(self) -> str:
        """As a section of a page, in Markdown."""
        return (
            f"### {self.claim}\n\n{self.table()}\n\n{self.conditions}\n"
            f"`python benchmarks/{self.name}.py`\n"
        )


def _bar(ratio: Ratio) -> str:
    if ratio.bar is None:
        return ""
    return f"{'<=' if ratio.at_most else '>='} {ratio.bar:g}{'' if ratio.met else ', **missed**'}"


def load(path: Path) -> Record:
    values = json.loads(path.read_text(encoding="utf-8"))
    return Record(**{**values, "ratios": [Ratio(**ratio) for ratio in values["ratios"]]})


def records() -> list[Record]:
    """All that are recorded, by name."""
    return [load(path) for path in sorted(RESULTS.glob("*.json"))]


def machine(device: str = "cpu") -> str:
    """The conditions that all measurements here share."""
    return (
        f"{device_name(torch.device(device))}, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}, Python {platform.python_version()}."
    )


def parser(doc: str | None) -> argparse.ArgumentParser:
    """For a benchmark's command line."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--check", action="store_true", help="compare with the recorded ratios")
    return made


def finish(record: Record, *, check: bool) -> None:
    """Print the record; write it, or with ``check`` exit with 3 if a ratio is worse than before."""
    print(f"\n{record.page()}")
    if not check:
        text = json.dumps(asdict(record), indent=2)
        record.path.write_text(text + "\n", encoding="utf-8")
        return
    before = {ratio.case: ratio for ratio in load(record.path).ratios}
    lost = [r for r in record.ratios if r.case in before and r.worse_than(before[r.case])]
    for ratio in lost:
        print(f"{record.name}: {ratio.case}: {ratio.value:.3g}, was {before[ratio.case].value:.3g}")
    if lost:
        sys.exit(WORSE_CODE)
