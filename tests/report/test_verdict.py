"""The headline of a table: the same answer as the verdict, and costs with their directions."""

from __future__ import annotations

import pytest

from dwsep_zoo.report.comparison import collect
from dwsep_zoo.report.verdict import MOST, headline


def headline_of(path):
    (table,) = collect([path], path).tables
    return table, headline(table)


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [((0.01, 0.011), "better"), ((-0.01, -0.011), "worse"), ((0.01, -0.02), "not distinguishable")],
)
def test_accuracy_over_seeds(write_run, tmp_path, as_separable, differences, outcome):
    for seed, difference in enumerate(differences):
        write_run(f"a{seed}", seed=seed, metrics={"test/acc": 0.9})
        write_run(f"b{seed}", seed=seed, metrics={"test/acc": 0.9 + difference}, **as_separable)
    table, found = headline_of(tmp_path)
    (answer,) = found.answers
    pair = table.rows[1].paired
    assert answer.paired is pair
    assert pair.outcome == outcome == pair.verdict
    assert f"{abs(100 * pair.mean):.2f} points" in answer.points
    assert ("worse" in answer.points) == (pair.mean < 0)


def test_one_seed_is_said(write_run, tmp_path, as_separable):
    write_run("a", right=range(40))
    write_run("b", right=range(20), **as_separable)
    (answer,) = headline_of(tmp_path)[1].answers
    assert (answer.paired.outcome, answer.paired.n) == ("worse", 1)


@pytest.mark.parametrize(
    ("macs", "p50", "words"),
    [
        (50_000_000, 2.0, ("8.0x fewer MACs", "2.0x faster here")),
        (800_000_000, 5.2, ("2.0x more MACs", "1.30x slower here")),
        (404_000_000, 4.05, ("about as many MACs", "about as fast here")),
    ],
)
def test_costs_have_a_direction(write_run, tmp_path, latency, as_separable, macs, p50, words):
    write_run("a")
    own = as_separable | {"macs": macs, "latency": [latency | {"p50_ms": p50}]}
    write_run("b", **own)
    (answer,) = headline_of(tmp_path)[1].answers
    assert tuple(cost.words for cost in answer.costs) == words
    assert [cost.ratio for cost in answer.costs] == [macs / 4e8, p50 / 4]
    assert not any(cost.unsteady for cost in answer.costs)


@pytest.mark.parametrize("is_steady", [True, False])
def test_an_unsteady_latency_is_marked(write_run, tmp_path, latency, as_separable, is_steady):
    change = {"in_turns": None} if is_steady else {"latency": [latency | {"stable": False}]}
    write_run("a")
    write_run("b", **as_separable, **change)
    (answer,) = headline_of(tmp_path)[1].answers
    assert [cost.unsteady for cost in answer.costs] == [False, True]


def test_main_pairs_are_separable_unmatched_and_few(write_run, tmp_path, as_separable, as_matched):
    for number in range(MOST + 1):
        write_run(f"a{number}", model=f"m{number}")
        write_run(f"b{number}", model=f"m{number}", conv="blueprint")
        write_run(f"c{number}", model=f"m{number}", **as_matched)
        write_run(f"d{number}", model=f"m{number}", **as_separable)
    _, found = headline_of(tmp_path)
    assert [answer.row.first.name for answer in found.answers] == ["d0", "d1", "d2"]
    assert found.others == 3 * (MOST + 1) - MOST


def test_without_a_pair_there_is_no_answer(write_run, tmp_path):
    write_run("a")
    assert headline_of(tmp_path)[1].answers == ()
