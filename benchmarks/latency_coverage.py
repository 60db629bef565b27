"""How often does the interval on a ratio of latencies hold the truth, if turns are correlated?

Simulated turns of two equal networks: the logarithm of their ratio is a first-order autoregression,
with normal noise or with one spike in twenty. A share counts trials whose interval holds the truth;
a trial that shows no interval misleads nobody and is counted apart.

    python benchmarks/latency_coverage.py     # prints a table, writes results/latency_coverage.json
"""

from __future__ import annotations

import statistics

import numpy as np
from record import Ratio, Record, finish, parse, parser

from dwsep_zoo.analysis.latency import COMPARE_TURNS, compare_turns

CORRELATIONS = (0.0, 0.5, 0.9)
SIGMA = 0.02  # of the logarithm of a turn's ratio
SPIKES, SPIKE = 0.05, 8.0  # share of turns, and how many times as far off they are
TRUTH_TURNS = 200_000  # of a series whose median is the truth where the noise is not symmetric


def turns(
    random: np.random.Generator, number: int, correlation: float, *, spikes: bool
) -> np.ndarray:
    """(number,): ratios of successive turns."""
    noise = random.standard_normal(number + 200)
    if spikes:
        noise = np.where(random.random(len(noise)) < SPIKES, SPIKE * np.abs(noise), noise)
    series = np.zeros(len(noise))
    for i in range(1, len(noise)):
        series[i] = correlation * series[i - 1] + (1 - correlation**2) ** 0.5 * noise[i]
    return np.exp(SIGMA * series[200:])


def simulate(correlation: float, number: int, trials: int, *, spikes: bool) -> Ratio:
    """Coverage of the intervals that are shown."""
    random = np.random.default_rng(0)
    truth = 1.0
    if spikes:
        truth = float(np.median(turns(random, TRUTH_TURNS, correlation, spikes=True)))
    ones = np.ones((number, 1))
    found = []
    for _ in range(trials):
        ratios = turns(random, number, correlation, spikes=spikes)
        found.append(compare_turns(ones.tolist(), ratios[:, None].tolist()))
    ends = [(c.low, c.high) for c in found if c.low is not None and c.high is not None]
    wrong = sum(not low <= truth <= high for low, high in ends)
    noise = "spikes" if spikes else "normal"
    return Ratio(
        f"{number} turns, correlation {correlation:g}, {noise}: trials that do not mislead",
        1 - wrong / trials,
        0.985,
        {
            "trials": trials,
            "intervals": len(ends),
            "wrong": wrong,
            "width %": 100 * statistics.median(high - low for low, high in ends) if ends else 0.0,
        },
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--trials", type=int, default=1000)
    options = parse(arguments)
    ratios = [
        simulate(correlation, number, options.trials, spikes=spikes)
        for spikes in (False, True)
        for number in (COMPARE_TURNS, 240)
        for correlation in CORRELATIONS
    ]
    claim = "Measuring: coverage of the interval on a ratio of latencies, simulated"
    conditions = "Simulated; independent of the machine."
    record = Record("latency_coverage", claim, conditions, ratios, options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
