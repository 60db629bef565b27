"""Statistics of accuracies: intervals over seeds, and tests of pairs of networks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dwsep_zoo.report.predictions import Predictions

CONFIDENCE = 0.95
RESAMPLES = 9999
SIGNIFICANT = 0.05
SAME = "not distinguishable"


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Sample:
    """A quantity measured in several runs.

    Attributes:
        values: one for each run.
        mean: of the values.
        std: standard deviation (divided by n - 1); ``None`` for one value.
        interval: of the mean by Student's t; ``None`` for one value and for equal ones.
    """

    n: int
    mean: float
    std: float | None
    interval: Interval | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> Sample:
        """Describe values between two limits, which no interval passes."""
        std = statistics.stdev(values) if len(values) > 1 else None
        interval = t_interval(values, low, high)
        return cls(len(values), statistics.fmean(values), std, interval, tuple(values))


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two networks of one seed on the same test images.

    McNemar (1947), Psychometrika 12. Under the null hypothesis, an image that only one of the two
    classifies correctly is equally likely to be either's.

    Attributes:
        both, only_reference, only_other, neither: images that these networks classify correctly.
        p_value: two-sided, binomial.
    """

    seed: int
    both: int
    only_reference: int
    only_other: int
    neither: int
    p_value: float

    @property
    def outcome(self) -> str:
        """The other network is ``better``, ``worse`` or ``not distinguishable``."""
        if self.p_value >= SIGNIFICANT:
            return SAME
        return "better" if self.only_other > self.only_reference else "worse"


@dataclass(frozen=True)
class Paired:
    """Accuracy of a network minus that of its reference, seed by seed; all in 0-1.

    Attributes:
        seeds: common to both.
        differences: one for each seed.
        t: interval of the mean by Student's t; ``None`` with one seed or without spread.
        mcnemar: one for each seed where both have predictions.
        no_mcnemar: a seed and why there is no test.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    t: Interval | None
    mcnemar: tuple[McNemar, ...] = ()
    no_mcnemar: tuple[tuple[int, str], ...] = ()

    @property
    def n(self) -> int:
        return len(self.seeds)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.differences)

    @cached_property
    def bootstrap(self) -> Interval | None:
        """The interval of the mean by the bootstrap (BCa) over the seeds."""
        return bootstrap_interval(self.differences)

    @property
    def outcome(self) -> str | None:
        """``better``, ``worse`` or ``not distinguishable``; ``None`` if the rule cannot decide.

        The rule: with several seeds, the side of 0 on which the t interval lies; with one seed,
        McNemar's test, which is about these two trained networks and not about training again.
        """
        if self.n == 1:
            return self.mcnemar[0].outcome if self.mcnemar else None
        if self.t is None:
            return None
        return "better" if self.t.low > 0 else "worse" if self.t.high < 0 else SAME

    @property
    def verdict(self) -> str:
        """The outcome in one phrase: with one seed, or where there is none, with the reason."""
        if self.n == 1:
            return f"one seed: {self.outcome}" if self.outcome else "one seed"
        return self.outcome or "no spread"

    @property
    def words(self) -> str:
        """The verdict with its numbers, such as ``n=3: difference +0.40 points, ...: better``."""
        text = f"n={self.n}: difference {points(self.mean)} points"
        if self.t:
            return f"{text}, 95 % interval {interval_text(self.t)}: {self.verdict}"
        if self.n > 1:
            return f"{text} in every seed; no spread, no interval"
        if not self.mcnemar:
            return f"{text}; one seed and no McNemar test: undecided"
        return (
            f"{text}, McNemar p={self.mcnemar[0].p_value:.2g}: {self.outcome}; one seed: about "
            "these two trained networks, not about training again"
        )


def t_interval(
    values: Sequence[float], low: float = -math.inf, high: float = math.inf
) -> Interval | None:
    """The 95 % interval of the mean by Student's t with n - 1 degrees of freedom.

    Args:
        values: measured independently.
        low: limit that no value can pass; the interval is cut off there.
        high: the other limit.

    Returns:
        ``None`` for one value and for equal ones, whose interval would have no width.
    """
    if not _spread(values):
        return None
    half = _t_factor(len(values)) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    return Interval(max(mean - half, low), min(mean + half, high))


def detectable(num_seeds: int) -> float:
    """The mean difference at which the t interval of so many seeds begins to exclude 0.

    In standard deviations of the paired differences; infinite for one seed.
    """
    return math.inf if num_seeds < 2 else _t_factor(num_seeds) / num_seeds**0.5


def _t_factor(num_values: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, num_values - 1))


def say_detectable(num_seeds: int) -> str:
    """Say which difference so many seeds tell from chance, and which one more seeds would."""

    def words(seeds: int) -> str:
        return f"with {seeds} seeds {detectable(seeds):.2g}"

    more = ", ".join(words(seeds) for seeds in (3, 5, 10) if seeds > num_seeds)
    unit = "standard deviations of the paired differences"
    if num_seeds < 2:
        return f"one seed tells no difference from chance; one is told from it above, {more} {unit}"
    own = (
        f"{num_seeds} seeds tell a difference from chance above {detectable(num_seeds):.2g} {unit}"
    )
    return f"{own}; {more}" if more else own


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """The 95 % interval of the mean by the bootstrap, with the same resamples at every call.

    Bias-corrected and accelerated (Efron, 1987).

    With n values there are only (2n - 1)! / n! / (n - 1)! different resamples, ten for n = 3: too
    few for the tails, so that the interval is coarse and too narrow.

    Returns:
        ``None`` for one value and for equal ones.
    """
    if not _spread(values):
        return None
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="BCa", rng=0
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def _spread(values: Sequence[float]) -> bool:
    """True if values differ by more than rounding errors."""
    return max(values) - min(values) > 1e-9


def paired(
    reference: Mapping[int, float],
    other: Mapping[int, float],
    reference_predictions: Mapping[int, Predictions] = {},
    other_predictions: Mapping[int, Predictions] = {},
) -> Paired | None:
    """Compare two networks that were trained with the same seeds.

    Args:
        reference: accuracies 0-1 by seed.
        other: accuracies of the other network.
        reference_predictions: by seed, where there are any.
        other_predictions: those of the other network.

    Returns:
        ``None`` if they have no seed in common.
    """
    seeds = tuple(sorted(set(reference) & set(other)))
    if not seeds:
        return None
    differences = tuple(other[seed] - reference[seed] for seed in seeds)
    tests, reasons = [], []
    for seed in seeds:
        try:
            tests.append(
                mcnemar(seed, reference_predictions.get(seed), other_predictions.get(seed))
            )
        except ValueError as error:
            reasons.append((seed, str(error)))
    return Paired(
        seeds,
        differences,
        t_interval(differences, -1.0, 1.0),
        tuple(tests),
        tuple(reasons),
    )


def mcnemar(seed: int, reference: Predictions | None, other: Predictions | None) -> McNemar:
    """McNemar's exact test.

    Raises:
        ValueError: without predictions, or if they are of different test images.
    """
    import numpy as np
    from scipy.stats import binomtest

    if reference is None or other is None:
        lacking = {"the reference": reference, "the network": other}
        whose = " and ".join(name for name, found in lacking.items() if found is None)
        raise ValueError(f"no predictions.npz of {whose}")
    if not np.array_equal(reference.label, other.label):
        raise ValueError("the labels of the two predictions.npz differ: not the same test images")
    # 0: both wrong, 1: only the other is right, 2: only the reference, 3: both
    outcome = 2 * (reference.predicted == reference.label) + (other.predicted == other.label)
    neither, only_other, only_reference, both = np.bincount(outcome, minlength=4).tolist()
    disagree = only_reference + only_other
    p_value = float(binomtest(only_other, disagree).pvalue) if disagree else 1.0
    return McNemar(seed, both, only_reference, only_other, neither, p_value)


def points(difference: float) -> str:
    """A difference of accuracies 0-1 in percentage points, signed.

    The sign stays even where all digits are 0, because verdicts depend on the side of 0 on which an
    interval ends.
    """
    rounding_error = abs(difference) < 1e-6  # accuracies are float32
    return f"{0.0 if rounding_error else 100 * difference:+.2f}"


def interval_text(interval: Interval) -> str:
    """In percentage points, such as ``[-0.30, +1.10]``."""
    return f"[{points(interval.low)}, {points(interval.high)}]"
