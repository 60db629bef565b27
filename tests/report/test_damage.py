"""Records with values of wrong types, and reports that cannot be written as a whole."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from dwsep_zoo import UserError, files
from dwsep_zoo.report import compare, load_results
from dwsep_zoo.report.comparison import collect
from dwsep_zoo.report.html import html_report
from dwsep_zoo.report.records import csv_text, json_text
from dwsep_zoo.report.render import markdown

SWEEP = Path(__file__).parents[1] / "runs" / "sweep"
RUN = SWEEP / "2-mobilenet_v1_shallow-depthwise_separable-s0"
VALUES = (
    *(None, True, 0, -1, 0.5, 10**30, 1e308, float("inf"), float("nan"), "", "x"),
    *([], [1], ["x"], [[]], {}, {"a": 1}, {"a": {"b": [1]}}),
)


def paths(values, path=()):
    """The keys of a record, and those of the first two elements of lists."""
    if path:
        yield path
    parts = values.items() if isinstance(values, dict) else ()
    if isinstance(values, list):
        parts = enumerate(values[:2])
    for key, part in parts:
        yield from paths(part, (*path, key))


def changed(values, path, value):
    values = json.loads(json.dumps(values))
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return values


def texts(folder):
    """All that a report says about the runs below a folder."""
    comparison = collect([folder], folder, None)
    return [
        *(markdown(comparison), html_report(comparison)),
        *(csv_text(comparison.tables), json_text(comparison)),
    ]


def test_200_values_of_other_types_are_no_crash(tmp_path):
    """Each in a run of its own; a hundred are compared together."""
    record = json.loads((RUN / "result.json").read_text())
    draw, places = random.Random(0), list(paths(record))
    roofline = [path for path in places if path[0] == "roofline"]
    cases = [(draw.choice(places), draw.choice(VALUES)) for _ in range(100)]
    cases += [(draw.choice(roofline), draw.choice(VALUES)) for _ in range(100)]
    for batch in range(0, len(cases), 100):
        folder = tmp_path / str(batch)
        shutil.copytree(SWEEP / "0-mobilenet_v1_shallow-standard-s0", folder / "whole")
        for number, (path, value) in enumerate(cases[batch : batch + 100]):
            file = folder / str(number) / "result.json"
            file.parent.mkdir()
            values = {**record, "seed": number}  # no repetition of another
            file.write_text(json.dumps(changed(values, path, value)))
        assert all(texts(folder))


LAYER = ("roofline", "networks", 0, "layers", 0)
TIMES = (
    *(("roofline", "networks", 0, key) for key in ("total_ms", "hooked_ms", "layers", "units")),
    *((*LAYER, key) for key in ("time_ms", "macs", "bytes", "attained", "intensity")),
    *(("roofline", "networks", 0, "units", 0, key) for key in ("time_ms", "layers", "bound")),
    *(("roofline", "peaks", key) for key in ("gflop_s", "bandwidths", "call_ms")),
    *(("roofline", key) for key in ("networks", "peaks", "runs", "batch_size", "input_size")),
    *(("latency", 0, key) for key in ("p50_ms", "p10_ms", "runs", "stable", "threads")),
    *(("time", "train_s"), ("memory", "peak_mb"), ("metrics", "test/acc")),
)


@pytest.mark.parametrize("value", ["x", [], {"a": 1}, -1, float("inf"), [[1]]], ids=str)
@pytest.mark.parametrize("path", TIMES, ids=lambda path: ".".join(map(str, path)))
def test_a_measurement_of_another_type_is_left_out_or_named(tmp_path, path, value):
    shutil.copytree(RUN, tmp_path / "run")
    file = tmp_path / "run" / "result.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))
    try:
        comparison = collect([tmp_path], tmp_path, None)
    except UserError:  # there is no other run
        return
    named = " ".join(problem.reason for problem in comparison.problems)
    if path[0] == "roofline" and isinstance(value, float | int):
        assert "roofline" in named
    json.loads(json_text(comparison))
    assert markdown(comparison)


def test_a_full_disk_leaves_the_report_of_before(tmp_path, monkeypatch):
    shutil.copytree(RUN, tmp_path / "run")
    file = tmp_path / "run" / "result.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), ("roofline",), None)))
    out, console = tmp_path / "out", Console(file=StringIO())
    compare([tmp_path / "run"], out, console)
    before = {path: path.read_bytes() for path in out.iterdir()}
    shutil.copytree(tmp_path / "run", tmp_path / "run" / "other")
    synced = []

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(UserError, match=r"cannot write .*comparison\.\w+: No space left"):
        compare([tmp_path / "run"], out, console)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_record_that_is_nested_for_ever_is_a_problem(tmp_path):
    shutil.copytree(RUN, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text("[" * 100_000)
    _, (problem,) = load_results([tmp_path])
    assert "it is not JSON" in problem.reason
