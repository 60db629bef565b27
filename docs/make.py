"""Renew the generated parts of these pages: ``python docs/make.py``.

It redraws every picture in ``pictures/`` and replaces the text between ``<!-- COMMAND -->`` and
``<!-- end -->`` in every page. A command is a ``dwsep`` command, whose output is shown,
``traffic MODEL SIZE`` for a table, ``benchmarks [NAME ...]`` for the records of the benchmarks (all
of them by default), ``runs NAME`` for the tables of the recorded trainings in
``benchmarks/results/NAME``, or ``weights DATASET`` for a table of the networks trained on it.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.record import RESULTS, records
from dwsep_zoo import create_model, terminal
from dwsep_zoo.analysis.units import works
from dwsep_zoo.cli import main
from dwsep_zoo.schema.record import read_record
from dwsep_zoo.schema.roofline import KINDS, Work
from dwsep_zoo.weights.catalog import OWN, own_networks

WIDTH = 96  # columns of output; more have to be scrolled
FOLDER = Path(__file__).resolve().parent
BLOCK = re.compile(
    r"<!-- ((?:dwsep|traffic|benchmarks|runs|weights)\b.*?) -->\n.*?<!-- end -->", re.DOTALL
)


def renewed(page: str) -> str:
    """Return the text of a page with all of its blocks renewed."""
    return BLOCK.sub(lambda block: f"<!-- {block[1]} -->\n{_made(block[1])}\n<!-- end -->", page)


def _made(command: str) -> str:
    program, *arguments = shlex.split(command)
    if program == "traffic":
        name, size = arguments
        return traffic(name, int(size))
    if program == "benchmarks":
        made = [r for r in records() if not arguments or r.name in arguments]
        return "\n".join(["", *(record.page() for record in made)])
    if program == "runs":
        (name,) = arguments
        return runs(name)
    if program == "weights":
        (dataset,) = arguments
        return weights(dataset)
    output = io.StringIO()
    with patch.object(terminal, "PIPE_WIDTH", WIDTH), contextlib.redirect_stdout(output):
        main(arguments)
    lines = (line.rstrip() for line in output.getvalue().splitlines())
    return "\n".join(["```text", *lines, "```"])


def runs(name: str) -> str:
    """Return title and main table of each section of a recorded report."""
    report = (RESULTS / name / "comparison.md").read_text(encoding="utf-8")
    tables = re.findall(r"^## (.*)\n(?:\n[^|\n].*\n)*\n((?:\|.*\n)+)", report, re.MULTILINE)
    return "".join(f"\n**{title}**\n\n{table}" for title, table in tables)


def weights(dataset: str) -> str:
    """Return a table of the networks that this project brings along, each with its card."""
    rows = [
        "| network | `conv=` | width | parameters M | MACs M | test accuracy | epochs |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name in own_networks(dataset):
        record = read_record(OWN / dataset / name / "result.json")
        card = f"../{(OWN / dataset / name).relative_to(FOLDER.parent).as_posix()}/README.md"
        millions = ((record.params or 0) / 1e6, (record.macs or 0) / 1e6)
        rows.append(
            f"| [`{name}.{dataset}`]({card}) | {record.conv} | {record.width_mult:g} | "
            f"{millions[0]:.2f} | {millions[1]:.1f} | {record.metrics['test/acc']:.1%} | "
            f"{record.epochs} |"
        )
    return "\n".join(["", *rows, ""])


def traffic(name: str, size: int) -> str:
    """Return a table of the MACs and the memory traffic of each kind of layer."""
    rows = [
        f"| `conv=`, 3 x {size} x {size} | layers | MACs M | numbers M | share of numbers | "
        "MACs per number |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for conv in ("standard", "depthwise_separable"):
        with torch.device("meta"):
            model = create_model(name, conv=conv, drop_path_rate=0.0)
        parts = works(model, (3, size, size))
        total = sum(map(_numbers, parts))
        for kind in KINDS:
            own = [part for part in parts if part.kind == kind]
            if own:
                rows.append(_row(conv, kind, own, total))
        rows.append(_row(conv, "**all**", parts, total))
    return "\n".join(["", *rows, ""])


def _row(conv: str, kind: str, parts: list[Work], total: int) -> str:
    macs, numbers = sum(part.macs for part in parts), sum(map(_numbers, parts))
    return (
        f"| {conv} | {kind} | {macs / 1e6:,.1f} | {numbers / 1e6:,.1f} | {numbers / total:.0%} "
        f"| {macs / numbers:,.1f} |"
    )


def _numbers(part: Work) -> int:
    return part.activations + part.weights


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER))
    import pictures

    for name in pictures.operators():
        (FOLDER / "pictures" / f"{name}.svg").write_text(pictures.draw(name), encoding="utf-8")
    for path in FOLDER.glob("*.md"):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
