"""A comparison as one HTML file that needs nothing else: no network, and no JavaScript to read."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from markupsafe import Markup
from matplotlib.artist import Artist

import dwsep_zoo
from dwsep_zoo.report import columns, words
from dwsep_zoo.report.class_pairs import ClassPair
from dwsep_zoo.report.comparison import MOST_TABLES, Comparison
from dwsep_zoo.report.corruptions import corruption_columns
from dwsep_zoo.report.drawn import MOST_ROWS
from dwsep_zoo.report.examples import examples
from dwsep_zoo.report.figures.classes import class_panel
from dwsep_zoo.report.figures.cost import cost_panels
from dwsep_zoo.report.figures.curves import curve_panels
from dwsep_zoo.report.figures.differences import LEGEND, difference_panel
from dwsep_zoo.report.figures.panel import Panel, alone
from dwsep_zoo.report.figures.ratios import ratio_panel
from dwsep_zoo.report.figures.roofline import roofline_legend, roofline_panels
from dwsep_zoo.report.figures.style import legend
from dwsep_zoo.report.figures.svg import inline, rules, swatch
from dwsep_zoo.report.html import facts
from dwsep_zoo.report.html.template import page_template
from dwsep_zoo.report.profiles import Profile
from dwsep_zoo.report.statistics import interval_text
from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.report.verdict import headline, is_unsteady
from dwsep_zoo.schema.measures import LATENCY, MEASURES

__all__ = ["html_report"]

MOST_TESTS = 12  # of McNemar with a cross table each


class _Section:
    """The part of the page about one table; ``number`` counts the tables from 1."""

    def __init__(
        self, table: Table, profiles: Sequence[Profile], classes: Sequence[ClassPair], number: int
    ):
        self.table, self.number, self.profiles = table, number, profiles
        self.drawn = 0
        models = table.values(lambda row: row.first.model)
        self.is_alone = len(models) == 1
        who = models[0] if self.is_alone else f"{len(models)} models"
        self.name = f"{who} on {words.data_name(table.rows[0].first)}"
        self.heading, self.distinction = words.heading(table), words.distinction(table)
        self.headline = headline(table)
        pairs = [row for row in table.rows if row.reference and row.paired]
        costs = [facts.cost_words(table, row) for row in pairs]
        self.verdicts = list(zip(words.verdicts(table), costs, strict=True))
        self.columns, self.ends = columns.columns(table), columns.group_ends(table)
        self.unsteady = _unsteady(table, [column.heading for column in self.columns])
        self.is_drawn, self.is_long = number <= MOST_TABLES, len(table.rows) > MOST_ROWS
        first = sum(bool(measure.axis) for measure in MEASURES)  # with one latency
        shown = [examples(pair) if self.is_drawn else [] for pair in classes]
        self.classes = list(zip(classes, map(class_panel, classes), shown, strict=True))
        found, ratios = cost_panels(table), ratio_panel(table)
        self.costs = [*found[:first], *([ratios] if ratios else [])]
        self.latencies, self.legend = found[first:], legend(table)
        self.differences, self.pair_legend = difference_panel(table), LEGEND
        self.curves = curve_panels(table) if self.is_drawn else []
        self.has_pairs = bool(pairs)
        tests = [(row, t) for row in table.rows if row.paired for t in row.paired.mcnemar]
        self.tests = tests[:MOST_TESTS]
        self.more_tests = len(tests) - len(self.tests)
        self.recipe = facts.recipe(table)
        self.corruptions = corruption_columns(table)

    def label(self, row: Row) -> str:
        return columns.row_label(self.table, row)

    def row_id(self, index: int) -> str:
        return f"t{self.number}r{index}"

    def draw(self, panel: Panel, rows: Sequence[int] | None = None) -> Markup:
        """A panel as SVG; ``rows`` are those of the table that its marks count."""
        places = range(len(self.table.rows)) if rows is None else rows
        return Markup(inline(alone(panel), self._prefix(), [self.row_id(i) for i in places]))

    def sign(self, handle: Artist) -> Markup:
        """The sign of a legend's entry."""
        return Markup(swatch(handle, self._prefix()))

    def _prefix(self) -> str:
        self.drawn += 1
        return f"f{self.number}-{self.drawn}-"


def html_report(comparison: Comparison) -> str:
    """The whole comparison as one page.

    The answer comes first, then the table and a row of figures; everything else is folded. The
    script adds sorting and tooltips. A content security policy lets nothing else run and nothing be
    loaded.
    """
    found = zip(comparison.tables, comparison.profiles, comparison.classes, strict=True)
    sections = [_Section(*parts, number) for number, parts in enumerate(found, 1)]
    runs = [run for table in comparison.tables for row in table.rows for run in row.runs]
    runs += [*comparison.repeated, *comparison.unfinished]
    numbers = {"table": len(sections), "run": len(runs)}
    page = page_template("dwsep_zoo.report", "html", "page.html.jinja").render(
        title="; ".join(section.heading for section in sections) or words.NO_RUN,
        counts=", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for noun, n in numbers.items()),
        made=comparison.made,
        scope=words.scope(comparison.options),
        sections=sections,
        remarks=words.remarks(comparison),
        origins=facts.origins(runs),
        number_of_runs=len(runs),
        run_columns=facts.run_columns(runs),
        words=words,
        columns=columns,
        facts=facts,
        roofline_panels=roofline_panels,
        roofline_legend=roofline_legend,
        version=dwsep_zoo.__version__,
        interval_text=interval_text,
        digest=_digest,
        style=Markup(rules() + _text("style.css")),
        script=Markup(_text("script.js")),
    )
    return page.lstrip()


def _unsteady(table: Table, headings: list[str]) -> dict[int, set[int]]:
    """The rows whose latency, and whose ratio of latencies, is not steady, by column."""
    if LATENCY.heading not in headings:
        return {}
    place, conditions = headings.index(LATENCY.heading), table.conditions[0]
    rows = list(enumerate(table.rows))
    return {
        place: {n for n, row in rows if row.stable(conditions) is False},
        place + 1: {
            n
            for n, row in rows
            if not row.is_reference
            and row.latency_ratio(conditions)
            and is_unsteady(row, conditions)
        },
    }


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The name of an inline style or script in the content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
