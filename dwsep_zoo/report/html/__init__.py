"""A comparison as one HTML file that needs nothing else: no network, and no JavaScript to read."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from dwsep_zoo.report import words
from dwsep_zoo.report.columns import (
    MISSING,
    Column,
    columns,
    general,
    group_ends,
    latency_columns,
    p_text,
    row_label,
    size_columns,
    statistics_columns,
)
from dwsep_zoo.report.comparison import Comparison
from dwsep_zoo.report.figure import COLOURS
from dwsep_zoo.report.html import charts, facts
from dwsep_zoo.report.html.charts import Chart, row_id
from dwsep_zoo.report.html.plot import marker_path
from dwsep_zoo.report.profiles import Profile
from dwsep_zoo.report.results import Run
from dwsep_zoo.report.statistics import McNemar
from dwsep_zoo.report.table import Row, Table

__all__ = ["html_report"]

PARTS = {
    "cost": "Accuracy against cost",
    "statistics": "Statistics",
    "curves": "Learning curves",
    "latency": "Latency",
    "time": "Where the time goes",
    "terms": "Terms of the comparison",
}


@dataclass(frozen=True)
class _Profile:
    """A roofline, drawn."""

    profile: Profile
    bars: Chart
    roof: Chart | None
    kinds: list[Column]


class _Section:
    """What the page says about one table; ``number`` counts the tables from 1."""

    def __init__(self, table: Table, profiles: Sequence[Profile], number: int):
        self.table, self.number = table, number
        self.heading, self.distinction = words.heading(table), words.distinction(table)
        pairs = [row for row in table.rows if row.reference and row.paired]
        costs = [facts.cost_words(table, row) for row in pairs]
        self.verdicts = list(zip(words.verdicts(table), costs, strict=True))
        self.warnings = words.warnings(table)
        self.legend = words.legend(table)
        self.columns, self.ends = columns(table), group_ends(table)
        self.statistics_legend = words.statistics_legend(table)
        self.statistics, self.latency = statistics_columns(table), latency_columns(table)
        self.conditions = facts.conditions_columns(table)
        self.budgets, self.searches = facts.budget_columns(table), facts.search_columns(table)
        self.sizes, self.recipe = size_columns(table), facts.recipe(table)
        self.pareto = charts.pareto(table, number)
        self.curves = charts.curves(table, number)
        self.differences = charts.differences(table, number)
        self.profiles = [self._drawn(profile) for profile in profiles]

    def label(self, row: Row) -> str:
        return row_label(self.table, row)

    @cached_property
    def tests(self) -> list[tuple[Row, McNemar]]:
        return [(row, t) for row in self.table.rows if row.paired for t in row.paired.mcnemar]

    def _drawn(self, profile: Profile) -> _Profile:
        from dwsep_zoo.report.html import timing  # it needs torch

        ids = [row_id(self.number, index) for index in profile.rows]
        return _Profile(
            profile,
            timing.time_by_kind(profile.roofline, ids),
            timing.roof(profile.roofline, ids),
            facts.kind_columns(profile.roofline),
        )


def html_report(comparison: Comparison) -> str:
    """The whole comparison as one page.

    It has the tables and sentences of ``comparison.md`` and draws them: accuracy against every
    cost, paired differences, learning curves, time by kind of unit. Its script adds sorting and
    tooltips. A content security policy lets nothing else run and nothing be loaded.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    import dwsep_zoo

    environment = Environment(
        loader=PackageLoader("dwsep_zoo.report", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["px"] = _pixels
    found = zip(comparison.tables, comparison.profiles, strict=True)
    sections = [_Section(table, profiles, n) for n, (table, profiles) in enumerate(found, 1)]
    remarks = words.remarks(comparison)
    runs = [run for table in comparison.tables for row in table.rows for run in row.runs]
    runs += [*comparison.repeated, *comparison.unfinished]
    style = _palette() + _text("style.css")
    return (
        environment.get_template("page.html.jinja")
        .render(
            title="; ".join(section.heading for section in sections) or "no run has finished",
            counts=_counts(comparison, len(runs)),
            made=comparison.made,
            scope=words.scope(comparison.options),
            sections=sections,
            remarks=remarks,
            origins=facts.origins(runs),
            runs=runs,
            run_columns=_run_columns(runs),
            version=dwsep_zoo.__version__,
            paths={marker: marker_path(marker) for marker in charts.ALL_MARKERS},
            ids={marker: n for n, marker in enumerate(charts.ALL_MARKERS)},
            parts=PARTS,
            row_id=row_id,
            p_text=p_text,
            digest=_digest,
            style=Markup(style),
            script=Markup(_text("script.js")),
        )
        .lstrip()
    )


def _counts(comparison: Comparison, runs: int) -> str:
    numbers = {"table": len(comparison.tables), "run": runs}
    return ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for noun, n in numbers.items())


def _run_columns(runs: Sequence[Run]) -> list[Column]:
    def accuracy(run: Run) -> str:
        return MISSING if run.accuracy is None else f"{100 * run.accuracy:.2f}"

    return [
        Column("run", tuple(run.name for run in runs), is_number=False),
        Column("model", tuple(run.model for run in runs), is_number=False),
        Column("conv", tuple(run.conv for run in runs), is_number=False),
        Column("width", tuple(general(run.record.width_mult) for run in runs)),
        Column("seed", tuple(general(run.record.seed) for run in runs)),
        Column("status", tuple(run.record.status for run in runs), is_number=False),
        Column("test acc %", tuple(accuracy(run) for run in runs)),
        Column("finished", tuple(run.record.finished or MISSING for run in runs), is_number=False),
        Column("folder", tuple(str(run.folder) for run in runs), is_number=False),
    ]


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _palette() -> str:
    """The colours of the pictures beside the page; black is the colour of text, which changes."""
    from dwsep_zoo.report.html.timing import kind_class
    from dwsep_zoo.report.roofline import KIND_COLOURS

    colours = {charts.colour_class(index): colour for index, colour in enumerate(COLOURS)}
    colours |= {kind_class(kind): colour for kind, colour in KIND_COLOURS.items()}
    named = {name: "var(--ink)" if c == "#000000" else c for name, c in colours.items()}
    return "".join(f".{name}{{--c:{colour}}}" for name, colour in named.items())


def _digest(text: str) -> str:
    """As the content security policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _pixels(value: float) -> str:
    return f"{value:.1f}"
