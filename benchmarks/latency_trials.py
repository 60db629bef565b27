"""Does the latency comparison say what is true?

Forty trials of `compare_latency`, in turns of the two kinds:

* same: MobileNetV2 against another MobileNetV2. True is "no difference".
* a tenth more: MobileNetV1's repeated block, a depthwise separable convolution of 512 channels on
  14 x 14 pixels, ten times against eleven times; it is one block, so that the work is 1.10 times as
  much and the weights are the same. True is "slower".

    python benchmarks/latency_trials.py     # prints a table and writes results/latency_trials.md

Run it on a quiet machine. It exits with 1 if a verdict is wrong.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dwsep_zoo import create_model
from dwsep_zoo.analysis.latency import (
    Latency,
    LatencyComparison,
    compare_latency,
    device_name,
    measure_latency,
)

BLOCKS = 10


@dataclass(frozen=True)
class Kind:
    """A pair of networks, and what is true of them."""

    title: str
    networks: tuple[nn.Module, nn.Module]
    input_size: tuple[int, int, int]
    ratio: float
    verdict: str


def kinds() -> list[Kind]:
    stage = create_model("mobilenet_v1").stages[3]  # 512 channels; its blocks 2 to 6 are equal
    block = stage[1]
    fewer, more = (nn.Sequential(*[block] * n) for n in (BLOCKS, BLOCKS + 1))
    same = create_model("mobilenet_v2"), create_model("mobilenet_v2")
    return [
        Kind("same", same, (3, 224, 224), 1.0, "no difference"),
        Kind("a tenth more", (fewer, more), (512, 14, 14), 1 + 1 / BLOCKS, "slower"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20, help="of each kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runtime", default="eager")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    conditions = {"threads": options.threads, "runtime": options.runtime}
    pairs = kinds()
    found: dict[str, list[LatencyComparison]] = {kind.title: [] for kind in pairs}
    for trial in range(options.trials):
        for kind in pairs:
            comparison = compare_latency(*kind.networks, kind.input_size, **conditions)
            found[kind.title].append(comparison)
            print(f"trial {trial + 1}, {kind.title}: {comparison}", flush=True)
    latencies = {k.title: measure_latency(k.networks[0], k.input_size, **conditions) for k in pairs}
    text = report(pairs, found, latencies)
    print(text)
    (options.out / "latency_trials.md").write_text(text)
    if any(c.verdict != kind.verdict for kind in pairs for c in found[kind.title]):
        sys.exit(1)


def report(
    pairs: list[Kind],
    found: dict[str, list[LatencyComparison]],
    latencies: dict[str, Latency],
) -> str:
    lines = [
        "# Trials of the latency comparison",
        "",
        "`python benchmarks/latency_trials.py`",
        "",
        "| networks | true ratio | verdict | right | ratio found, smallest to largest "
        "| width of the 99 % interval, median | true ratio inside | first network, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in pairs:
        trials = found[kind.title]
        ratios = [c.ratio for c in trials]
        right = sum(c.verdict == kind.verdict for c in trials)
        inside = sum(c.low <= kind.ratio <= c.high for c in trials)
        latency = latencies[kind.title]
        lines.append(
            f"| {kind.title} | {kind.ratio:.2f} | {kind.verdict} | {right} of {len(trials)} "
            f"| {min(ratios):.3f} to {max(ratios):.3f} "
            f"| {np.median([c.high - c.low for c in trials]):.3f} | {inside} of {len(trials)} "
            f"| {latency.p50_ms:.2f} [{latency.p10_ms:.2f}, {latency.p90_ms:.2f}]"
            f"{'' if latency.stable else ' unstable'} |"
        )
    latency = next(iter(latencies.values()))
    lines += [
        "",
        f"{device_name(torch.device('cpu'))}, threads: {latency.threads}, {latency.runtime}, "
        f"{latency.precision}, {latency.memory_format}, batch {latency.batch_size}; "
        f"torch {torch.__version__}. Latencies: median [p10, p90].",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
