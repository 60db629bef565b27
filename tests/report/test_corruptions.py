"""Accuracy by corruption and severity."""

from __future__ import annotations

import numpy as np
import pytest

from dwsep_zoo.report.corruptions import accuracies, corruption_columns, lines
from dwsep_zoo.report.results import load_results
from dwsep_zoo.report.table import make_tables


def test_accuracies_of_each_kind_and_severity():
    rng = np.random.default_rng(0)
    kinds = [("fog", 1), ("fog", 5), ("zoom_blur", 1)]
    names, right = [], []
    for kind, severity in kinds:
        names += [f"{kind}/{severity}/{i}" for i in range(10)]
        right.append(rng.random(10) < 0.7)
    order = rng.permutation(30)
    found = accuracies([names[i] for i in order], np.concatenate(right)[order])
    want = {f"corruption/{k}/{s}": r.mean() for (k, s), r in zip(kinds, right, strict=True)}
    assert found == pytest.approx(want)


def test_tables_of_the_terminal_and_of_the_page(write_run):
    metrics = {"corruption/fog/1": 0.9, "corruption/fog/5": 0.5, "corruption/snow/1": 0.6}
    text = lines({"test/acc": 0.7, **metrics})
    assert [line.split()[-3:] for line in text[1:]] == [
        ["90.0", "50.0", "70.0"],
        ["60.0", "-", "60.0"],
        ["75.0", "50.0", "65.0"],
    ]
    assert lines({"test/acc": 0.7}) == []
    path = write_run("a", metrics={"test/acc": 0.7, **metrics})
    (table,), _ = make_tables(load_results([path])[0])
    kinds, values = corruption_columns(table)
    assert kinds.cells == ("fog", "snow", "mean")
    assert values.cells == ("70.0", "60.0", "65.0")
