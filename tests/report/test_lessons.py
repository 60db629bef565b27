"""Teachers and unequal classes in a comparison."""

from __future__ import annotations

import csv
import io
import json

import pytest

from dwsep_zoo.errors import UserError
from dwsep_zoo.report.columns import columns, row_label
from dwsep_zoo.report.comparison import collect
from dwsep_zoo.report.records import csv_text, json_text
from dwsep_zoo.report.render import markdown
from dwsep_zoo.report.results import load_results
from dwsep_zoo.report.table import Options, select
from dwsep_zoo.report.verdict import headline

TEACHER = {
    "name": "mobilenet_v1 standard",
    "fingerprint": "abc",
    "test_acc": 0.98,
    "macs": 400_000_000,
    "kind": "kd",
    "temperature": 4.0,
    "weight": 0.9,
    "features": 0.0,
}


@pytest.fixture
def lesson(write_run, as_separable, tmp_path):
    """Teacher, student with and without it, for three seeds, each with a teacher of its own."""
    for seed, (alone, taught) in enumerate(((0.95, 0.96), (0.94, 0.96), (0.95, 0.97))):
        write_run(f"t{seed}", seed=seed, time={"train_s": 100.0 + seed})
        write_run(f"s{seed}", seed=seed, metrics={"test/acc": alone}, **as_separable)
        teacher = {**TEACHER, "run": f"t{seed}", "fingerprint": str(seed), "source": f"t{seed}"}
        metrics = {"test/acc": taught}
        write_run(f"d{seed}", seed=seed, metrics=metrics, teacher=teacher, **as_separable)
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("teacher", "names"),
    [("null", "tttsss"), ("kd", "ddd"), ("mobilenet_v1 standard", "ddd"), ("js", None)],
)
def test_students_are_filtered_by_teacher_and_method(lesson, teacher, names):
    runs, _ = load_results([lesson])
    if names is None:
        with pytest.raises(UserError, match=f"{teacher}.*kd, mobilenet_v1 standard, none"):
            select(runs, {"teacher": (teacher,)})
    else:
        found = select(runs, {"teacher": (teacher,)})
        assert sorted(run.name[0] for run in found) == sorted(names)


def test_a_taught_row_is_set_against_the_same_network_without_a_teacher(lesson):
    comparison = collect([lesson], lesson)
    (table,) = comparison.tables
    teacher, alone, taught = table.rows
    assert (alone.reference, taught.reference.runs) == (teacher.reference, alone.runs)
    assert [len(row.runs) for row in table.rows] == [3, 3, 3]
    assert taught.paired.differences == pytest.approx((0.01, 0.02, 0.02))
    assert taught.paired.outcome == "better"
    shown = {column.heading: column.cells for column in columns(table)}
    assert shown["teacher"] == ("-", "-", "standard (kd 0.9, T 4)")
    assert row_label(table, taught) == "depthwise_separable taught by standard (kd 0.9, T 4)"
    assert {answer.row.first.name for answer in headline(table).answers} == {"s0", "d0"}
    text = markdown(comparison)
    assert "teacher mobilenet_v1 standard: 400.00 M MACs, test accuracy 98.00 %" in text
    assert "its own training (101 s)" in text
    assert "one teacher for several seeds" not in text
    rows = json.loads(json_text(comparison))["tables"][0]["rows"]
    assert [bool(row["teacher"]) for row in rows] == [False, False, True]
    lines = list(csv.DictReader(io.StringIO(csv_text(comparison.tables))))
    assert [line["teacher"] for line in lines] == ["", "", "standard (kd 0.9, T 4)"]


@pytest.mark.parametrize(
    "change", [{"temperature": 1.0}, {"kind": "js"}, {"weight": 0.5}, {"features": 1.0}]
)
def test_other_lessons_are_other_rows(change, lesson, write_run, as_separable):
    write_run("x", teacher={**TEACHER, **change}, **as_separable)
    (table,) = collect([lesson], lesson).tables
    assert len(table.rows) == 4
    assert len({row_label(table, row) for row in table.rows}) == 4


def test_without_its_twin_a_taught_row_is_set_against_the_standard_one(write_run, as_separable):
    folders = [write_run("t"), write_run("d", teacher=TEACHER, **as_separable)]
    (table,) = collect(folders, folders[0]).tables
    teacher, taught = table.rows
    assert taught.reference.runs == teacher.runs


def test_a_taught_network_is_nobodys_reference(write_run, as_separable):
    folders = [
        write_run("t"),
        write_run("again", teacher=TEACHER),
        write_run("s", **as_separable),
    ]
    (table,) = collect(folders, folders[0]).tables
    assert [row.reference.first.name for row in table.rows] == ["t", "t", "t"]


def test_a_file_of_a_taught_network_is_set_against_it(write_run, as_separable, tmp_path):
    write_run("s", **as_separable)
    write_run("d", teacher=TEACHER, **as_separable)
    artefact = {"format": "onnx", "precision": "int8"}
    write_run("e", teacher=TEACHER, artefact=artefact, **as_separable)
    (table,) = collect([tmp_path], tmp_path).tables
    found = {row.first.name: row.reference for row in table.rows}
    assert found["e"].first.name == "d"
    assert found["d"].first.name == "s"


def test_one_teacher_for_several_seeds_is_said(write_run, as_separable, tmp_path):
    for seed in (0, 1):
        write_run(f"d{seed}", seed=seed, teacher=TEACHER, **as_separable)
    assert "one teacher for several seeds" in markdown(collect([tmp_path], tmp_path))


def test_rows_are_filtered_by_their_teacher(lesson):
    (table,) = collect([lesson], lesson, Options(where={"teacher": ("null",)})).tables
    assert len(table.rows) == 2


@pytest.mark.parametrize(("images", "shown"), [([50, 40], False), ([90, 10], True)])
def test_balanced_accuracy_is_shown_where_classes_are_unequal(
    images, shown, write_run, as_separable, tmp_path
):
    for seed, balanced in enumerate((0.7, 0.8)):
        scores = {"images": images, "accuracy": [0.9, 0.5], "balanced_acc": balanced}
        write_run(f"a{seed}", seed=seed, per_class=scores)
    write_run("old", **as_separable)  # which has none
    comparison = collect([tmp_path], tmp_path)
    found = {column.heading: column.cells for column in columns(comparison.tables[0])}
    assert ("balanced acc %" in found) == shown == ("10 to 90 test images" in markdown(comparison))
    if shown:
        assert found["balanced acc %"][0].startswith("75.00")
        assert found["balanced acc %"][1] == "-"
