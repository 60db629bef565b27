"""Is the verdict of the latency comparison true?

Forty trials of `compare_latency`, in turns of the two kinds:

* same: MobileNetV2 against another MobileNetV2. The truth is "no difference".
* a tenth more: MobileNetV1's repeated block, a depthwise separable convolution of 512 channels on
  14 x 14 pixels, ten times against eleven times. The repetitions share one block, so the work is
  1.10 times as much with the same weights. The truth is "slower".

    python benchmarks/latency_trials.py     # prints a table and writes results/latency_trials.json

Run it on a quiet machine.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from record import Ratio, Record, finish, machine, parse, parser
from torch import nn

from dwsep_zoo import create_model
from dwsep_zoo.analysis.latency import (
    Latency,
    LatencyComparison,
    compare_latency,
    measure_latency,
)

BLOCKS = 10


@dataclass(frozen=True)
class Kind:
    """A pair of networks and the true verdict."""

    title: str
    networks: tuple[nn.Module, nn.Module]
    input_size: tuple[int, int, int]
    ratio: float
    verdict: str


def kinds() -> list[Kind]:
    stage = create_model("mobilenet_v1").stages[3]  # 512 channels; blocks 2 to 6 are equal
    block = stage.get_submodule("1")
    fewer, more = (nn.Sequential(*[block] * n) for n in (BLOCKS, BLOCKS + 1))
    same = create_model("mobilenet_v2"), create_model("mobilenet_v2")
    return [
        Kind("same", same, (3, 224, 224), 1.0, "no difference"),
        Kind("a tenth more", (fewer, more), (512, 14, 14), 1 + 1 / BLOCKS, "slower"),
    ]


def share_of_right_verdicts(kind: Kind, trials: list[LatencyComparison], latency: Latency) -> Ratio:
    """Return the share, with the range of the ratios and the coverage of the true one."""
    ratios = [trial.ratio for trial in trials]
    ends = [(t.low, t.high) for t in trials if t.low is not None and t.high is not None]
    return Ratio(
        f"{kind.title}: right verdicts / trials",
        sum(trial.verdict == kind.verdict for trial in trials) / len(trials),
        1.0,
        {
            "trials": len(trials),
            "true ratio": kind.ratio,
            "smallest found": min(ratios),
            "largest found": max(ratios),
            "width of the interval": statistics.median(high - low for low, high in ends),
            "intervals": len(ends),
            "intervals with the true ratio inside": sum(
                low <= kind.ratio <= high for low, high in ends
            ),
            "first network ms": latency.p50_ms,
        },
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--trials", type=int, default=20, help="of each kind")
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--runtime", default="eager")
    options = parse(arguments)
    under: dict[str, Any] = {"threads": options.threads, "runtime": options.runtime}
    pairs = kinds()
    found: dict[str, list[LatencyComparison]] = {kind.title: [] for kind in pairs}
    for trial in range(options.trials):
        for kind in pairs:
            comparison = compare_latency(*kind.networks, kind.input_size, **under)
            found[kind.title].append(comparison)
            print(f"trial {trial + 1}, {kind.title}: {comparison}", flush=True)
    latencies = [measure_latency(kind.networks[0], kind.input_size, **under) for kind in pairs]
    ratios = [
        share_of_right_verdicts(kind, found[kind.title], latency)
        for kind, latency in zip(pairs, latencies, strict=True)
    ]
    steady = all(latency.stable for latency in latencies)
    conditions = (
        f"`compare_latency` with {options.threads} threads, {options.runtime}, "
        f"{latencies[0].precision}, {latencies[0].memory_format}, batch "
        f"{latencies[0].batch_size}; the width is the median of the 99 % intervals'. "
        f"{'' if steady else 'The latencies are unsteady. '}{machine()}"
    )
    claim = "Measuring: how often the comparison of two latencies says what is true"
    record = Record("latency_trials", claim, conditions, ratios, options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
