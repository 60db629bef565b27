"""Against textbooks, exact enumeration and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from dwsep_zoo.report.predictions import Predictions
from dwsep_zoo.report.statistics import (
    SAME,
    Interval,
    Sample,
    bootstrap_interval,
    detectable,
    interval_text,
    mcnemar,
    paired,
    points,
    say_detectable,
    t_interval,
)

# Student (1908), The probable error of a mean: hours of sleep gained by two drugs.
DRUG_1 = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
DRUG_2 = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)


def predictions(*outcomes: tuple[int, bool]) -> Predictions:
    """Pairs of a number of images and whether the network is right on them."""
    right = np.repeat([o for _, o in outcomes], [n for n, _ in outcomes])
    label = np.arange(len(right)) % 10
    return Predictions(label, np.where(right, label, (label + 1) % 10))


def test_paired_interval_of_students_own_data():
    one, two = ({n: hours / 10 for n, hours in enumerate(drug)} for drug in (DRUG_1, DRUG_2))
    found = paired(one, two)
    assert found.mean == pytest.approx(0.158)
    assert (found.t.low, found.t.high) == pytest.approx((0.07001142, 0.24598858))
    assert found.verdict == "better"


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (30, 2.045)])
def test_interval_has_the_quantiles_of_the_tables(n, quantile):
    values = tuple(range(n))
    expected = quantile * np.std(values, ddof=1) / math.sqrt(n)
    interval = Sample.of(values).interval
    assert (interval.high - interval.low) / 2 == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_interval_covers_the_mean_in_95_of_100_experiments(n):
    draws = np.random.default_rng(n).normal(0.7, 0.02, (2000, n))
    intervals = [t_interval(draw) for draw in draws]
    covered = np.mean([i.low <= 0.7 <= i.high for i in intervals])
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2000))


def test_bootstrap_is_bca_over_all_resamples():
    values = np.array([0.1, 0.4, -0.2, 0.9, 0.3, 0.35])
    n = len(values)
    means = np.sort(np.array(list(itertools.product(values, repeat=n))).mean(1))
    bias = norm.ppf(((means < values.mean()).mean() + (means <= values.mean()).mean()) / 2)
    leave_one_out = np.array([np.delete(values, i).mean() for i in range(n)])
    away = leave_one_out.mean() - leave_one_out
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    ends = []
    for z in norm.ppf([0.025, 0.975]):
        level = norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        ends.append(np.quantile(means, level))
    found = bootstrap_interval(values.tolist())
    assert (found.low, found.high) == pytest.approx(ends, abs=0.02)
    assert found == bootstrap_interval(values.tolist())


def test_bootstrap_stays_within_the_values_where_t_does_not():
    values = (0.001, 0.004, 0.002)
    assert t_interval(values).low < min(values) <= bootstrap_interval(values).low
    assert bootstrap_interval(values).high <= max(values) < t_interval(values).high


@pytest.mark.parametrize("values", [(0.5,), (0.5, 0.5, 0.5), (0.3, 0.1 + 0.2)])
def test_without_spread_there_is_no_interval(values):
    assert t_interval(values) is None
    assert bootstrap_interval(values) is None
    assert Sample.of(values).interval is None


@pytest.mark.parametrize("values", [(0.99, 0.7), (0.01, 0.3), (1.0, 0.999, 0.97)])
def test_no_interval_passes_the_limits(values):
    free, cut = Sample.of(values).interval, Sample.of(values, 0.0, 1.0).interval
    assert (cut.low, cut.high) == (max(free.low, 0), min(free.high, 1))
    found = paired(dict.fromkeys(range(len(values)), 0.5), dict(enumerate(values)))
    assert -1 <= found.t.low <= found.mean <= found.t.high <= 1


@pytest.mark.parametrize(
    ("differences", "verdict", "numbers"),
    [
        ((0.004, 0.001, 0.007), "not distinguishable", "n=3 +0.40 [-0.35, +1.15]"),
        ((0.01, 0.011, 0.012), "better", "n=3 +1.10 [+0.85, +1.35]"),
        ((-0.01, -0.011, -0.012), "worse", "n=3 -1.10 [-1.35, -0.85]"),
        ((0.004,), "one seed", "n=1 +0.40"),
        ((0.004, 0.004), "no spread", "n=2 +0.40"),
        ((0.0, 0.0), "no spread", "n=2 +0.00"),
    ],
)
def test_verdict_over_seeds(differences, verdict, numbers):
    other = {seed: 0.9 + difference for seed, difference in enumerate(differences)}
    found = paired(dict.fromkeys(other, 0.9), other)
    assert found.verdict == verdict
    assert all(number in found.words for number in numbers.split(" ", 2))


@pytest.mark.parametrize(
    ("only_reference", "only_other", "outcome"),
    [(1, 12, "better"), (12, 1, "worse"), (4, 6, SAME), (0, 5, SAME)],
)
def test_with_one_seed_mcnemar_decides_and_with_several_it_does_not(
    only_reference, only_other, outcome
):
    reference = predictions((40, True), (only_reference, True), (only_other, False))
    other = predictions((40, True), (only_reference, False), (only_other, True))
    one = paired(
        {0: reference.accuracy},
        {0: other.accuracy},
        reference_predictions={0: reference},
        other_predictions={0: other},
    )
    assert (one.outcome, one.verdict) == (outcome, f"one seed: {outcome}")
    assert outcome in one.words
    several = paired(
        {0: reference.accuracy, 1: other.accuracy},
        {0: other.accuracy, 1: reference.accuracy},
        reference_predictions={0: reference, 1: reference},
        other_predictions={0: other, 1: other},
    )
    assert several.verdict == SAME
    assert "McNemar" not in several.words


def test_only_common_seeds_count_and_the_order_does_not():
    found = paired({2: 0.9, 0: 0.8, 5: 0.1}, {0: 0.7, 7: 0.2, 2: 0.95})
    assert found.seeds == (0, 2)
    assert found.differences == pytest.approx((-0.1, 0.05))
    assert paired({0: 0.9}, {1: 0.9}) is None


def test_exchanging_the_two_turns_everything_round():
    a, b = {0: 0.9, 1: 0.92, 2: 0.89}, {0: 0.93, 1: 0.96, 2: 0.94}
    there, back = paired(a, b), paired(b, a)
    assert there.mean == -back.mean
    assert (there.t.low, there.t.high) == pytest.approx((-back.t.high, -back.t.low))
    assert (there.verdict, back.verdict) == ("better", "worse")


@pytest.mark.parametrize(("b", "c"), [(1, 9), (9, 1), (0, 6), (20, 20), (150, 86), (3, 4)])
def test_mcnemar_is_twice_the_tail_of_a_fair_coin(b, c):
    reference = predictions((40, True), (b, True), (c, False), (7, False))
    other = predictions((40, True), (b, False), (c, True), (7, False))
    found = mcnemar(3, reference, other)
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert found.p_value == pytest.approx(min(1, 2 * tail))
    assert (found.both, found.only_reference, found.only_other, found.neither) == (40, b, c, 7)
    assert found.seed == 3


def test_mcnemar_of_agrestis_approval_ratings():
    # Agresti, Categorical Data Analysis, table 10.1: 150 and 86 changed; McNemar's z is 4.17
    reference = predictions((794, True), (150, True), (86, False), (570, False))
    other = predictions((794, True), (150, False), (86, True), (570, False))
    assert mcnemar(0, reference, other).p_value == pytest.approx(3.7e-5, rel=0.05)


def test_mcnemar_without_a_disagreement():
    same = predictions((5, True), (3, False))
    assert mcnemar(0, same, same).p_value == 1


def test_different_test_images_never_meet():
    ours = predictions((8, True))
    theirs = Predictions(ours.label[::-1].copy(), ours.predicted)
    fewer = Predictions(ours.label[:4], ours.predicted[:4])
    for other in (theirs, fewer):
        with pytest.raises(ValueError, match="not the same test images"):
            mcnemar(0, ours, other)
    found = paired(
        {0: 1.0, 1: 1.0, 2: 1.0},
        {0: 1.0, 1: 0.5, 2: 1.0},
        reference_predictions={0: ours, 1: ours},
        other_predictions={0: ours, 1: theirs, 2: ours},
    )
    assert [test.seed for test in found.mcnemar] == [0]
    (one, not_the_same), (two, absent) = found.no_mcnemar
    assert (one, two) == (1, 2)
    assert "not the same test images" in not_the_same
    assert absent == "no predictions.npz of the reference"


def test_texts_are_signed_points():
    assert points(0.004) == "+0.40"
    assert points(-1e-9) == "+0.00"
    assert points(-7e-6) == "-0.00"
    assert interval_text(Interval(-0.003, 0.011)) == "[-0.30, +1.10]"


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_a_difference_that_is_detectable_is_the_half_width_of_the_interval(n):
    values = np.random.default_rng(n).standard_normal(n)
    interval = t_interval(values.tolist())
    half = detectable(n) * values.std(ddof=1)
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - half, values.mean() + half)
    )
    assert f"{detectable(n):.2g}" in say_detectable(n)
    assert detectable(1) == float("inf")
