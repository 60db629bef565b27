"""The benchmarks' records: what is good, what is worse than before, and where it is shown."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.record import RESULTS, Ratio, Record, finish, load, records
from dwsep_zoo import list_convs

README = Path(__file__).parents[1] / "README.md"

FASTER = Ratio("speed", 3.0, 2.5, {"ours images/s": 300.0, "theirs images/s": 100.0})
SMALLER = Ratio("memory", 0.5, 0.7, {"ours MB": 50.0}, at_most=True)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    made = Record("name", "A claim", "Conditions.", [FASTER, SMALLER])
    finish(made, check=False)
    return made


def changed(made, **values):
    ratios = [dataclasses.replace(r, value=values.get(r.case, r.value)) for r in made.ratios]
    return dataclasses.replace(made, ratios=ratios)


@pytest.mark.parametrize(
    ("ratio", "met"),
    [
        (FASTER, True),
        (dataclasses.replace(FASTER, bar=3.01), False),
        (SMALLER, True),
        (dataclasses.replace(SMALLER, bar=0.49), False),
        (dataclasses.replace(FASTER, bar=None), None),
    ],
)
def test_a_bar_is_met_or_missed(ratio, met):
    assert ratio.met is met
    assert ("missed" in Record("name", "A claim", "", [ratio]).table()) is (met is False)


def test_a_record_is_read_as_it_was_written(recorded):
    assert load(recorded.path) == recorded
    assert records() == [recorded]


@pytest.mark.parametrize("values", [{}, {"speed": 2.71, "memory": 0.549}, {"speed": 9}])
def test_a_tenth_may_be_lost(recorded, values):
    finish(changed(recorded, **values), check=True)
    assert load(recorded.path) == recorded  # a check writes nothing


@pytest.mark.parametrize("values", [{"speed": 2.69}, {"memory": 0.551}])
def test_more_than_a_tenth_is_worse(recorded, values, capsys):
    with pytest.raises(SystemExit, match="3"):
        finish(changed(recorded, **values), check=True)
    ((case, value),) = values.items()
    assert f"name: {case}: {value}, was" in capsys.readouterr().out


def test_every_row_of_the_readme_is_a_recorded_one():
    rows = re.findall(rf"^\| \w+ +\| (?:{'|'.join(list_convs())}) .*$", README.read_text(), re.M)
    reports = "".join(path.read_text() for path in RESULTS.glob("*/comparison.md"))
    assert rows
    assert [row for row in rows if row not in reports] == []
