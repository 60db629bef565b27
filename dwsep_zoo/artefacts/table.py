"""The formats of a network beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dwsep_zoo.analysis.device import torch_threads
from dwsep_zoo.analysis.latency import time_runs
from dwsep_zoo.analysis.runtimes import random_input
from dwsep_zoo.artefacts.artefact import Artefact
from dwsep_zoo.artefacts.evaluate import conditions
from dwsep_zoo.artefacts.export import Exported
from dwsep_zoo.artefacts.open import open_artefact
from dwsep_zoo.terminal import stdout_console, table

HEADINGS = ("format", "MB", "largest difference", "same top-1", "p50 ms")


def print_formats(artefact: Artefact, found: Sequence[Exported]) -> None:
    """Print size, agreement and the time of one image, taken in turns."""
    opened = [open_artefact(one.files[0], threads=artefact.threads) for one in found]
    networks = [artefact, *opened]
    x = random_input(1, artefact.input_size)

    def runner(one: Artefact):  # type: ignore[no-untyped-def]
        return lambda: one.logits(x)

    with torch_threads(artefact.threads), torch.inference_mode():
        timings = time_runs([runner(one) for one in networks], conditions(artefact, 1))
    rows = [[artefact.format, f"{artefact.size_bytes / 1e6:.2f}", "", ""]]
    rows += [
        [
            one.format,
            f"{one.size_bytes / 1e6:.2f}",
            f"{one.max_logit_difference:.1e}",
            f"{one.top1_agreement:.1%}",
        ]
        for one in found
    ]
    for row, timing in zip(rows, timings, strict=True):
        latency = timing.latency
        row.append(f"{latency.p50_ms:.2f}" + ("" if latency.stable else " (unsteady)"))
    title = f"one image, {artefact.threads} threads"
    stdout_console().print(table(title, HEADINGS, rows, words=HEADINGS[:1]))
