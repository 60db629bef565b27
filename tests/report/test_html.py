"""The page: well-formed, whole, harmless, without the network; its marks are the table's rows."""

from __future__ import annotations

import base64
import csv
import hashlib
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from dwsep_zoo.report import render, words
from dwsep_zoo.report.columns import columns, latency_columns, statistics_columns
from dwsep_zoo.report.comparison import Comparison, collect
from dwsep_zoo.report.html import facts, html_report
from dwsep_zoo.report.table import Options
from dwsep_zoo.report.verdict import headline
from dwsep_zoo.schema.measures import MEASURES

RUNS = Path(__file__).parents[1] / "runs"
VOID = {"meta", "wbr", "link", "br", "hr", "img", "input", "base", "col"}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7 * 7 }} $\\frac{$"


def compared(*paths: Path, **options) -> Comparison:
    """As ``compare`` makes it, without files."""
    comparison = collect(paths, Path("somewhere"), Options(**options))
    return replace(comparison, made="2026-01-02T03:04:05+00:00")


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None]
    children: list = field(default_factory=list)

    def all(self, tag: str) -> list[Node]:
        return [node for node in self.nodes if node.tag == tag]

    def of(self, style: str) -> list[Node]:
        """All nodes of a class."""
        return [n for n in self.nodes if style in (n.attributes.get("class") or "").split()]

    @property
    def text(self) -> str:
        return "".join(c.text if isinstance(c, Node) else c for c in self.children)

    @property
    def nodes(self) -> list[Node]:
        inner = [c.nodes for c in self.children if isinstance(c, Node)]
        return [self, *itertools.chain.from_iterable(inner)]


class Document(HTMLParser):
    """A tree; raises if a tag is closed that is not open, or stays open."""

    def __init__(self, text: str):
        super().__init__()
        self.root = Node("document", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert [node.tag for node in self.open] == ["document"]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def page(comparison: Comparison) -> Node:
    text = html_report(comparison)
    assert text.startswith("<!doctype html>")
    return Document(text).root


def words_of(node: Node) -> str:
    return " ".join(node.text.split())


def without_marks(cell: Node) -> str:
    """The text of a cell without ``best`` and ``~``."""
    parts = (c for c in cell.children if not isinstance(c, Node) or c.tag not in {"span", "abbr"})
    return " ".join("".join(c.text if isinstance(c, Node) else c for c in parts).split())


def cells(table: Node) -> list[list[str]]:
    (body,) = table.all("tbody")
    return [[without_marks(cell) for cell in row.all("td")] for row in body.all("tr")]


def expected(parts) -> list[list[str]]:
    lines = zip(*(part.cells for part in parts), strict=True)
    return [[" ".join(cell.split()) for cell in line] for line in lines]


@pytest.fixture(scope="module")
def whole() -> Comparison:
    """Recorded runs: a sweep, a budget, a search, rooflines, curves, failures."""
    return compared(RUNS)


@pytest.fixture(scope="module")
def text(whole) -> str:
    return html_report(whole)


@pytest.fixture(scope="module")
def root(text) -> Node:
    return Document(text).root


def test_every_part_is_there(whole, root):
    found = words_of(root)
    assert len(whole.tables) > 1
    for table, profiles in zip(whole.tables, whole.profiles, strict=True):
        lines = [words.heading(table), words.distinction(table), *words.verdicts(table)]
        lines += words.warnings(table) + words.legend(table) + words.statistics_legend(table)
        lines += [str(conditions) for conditions in table.conditions]
        lines += [line for profile in profiles for line in (*profile.sentences, *profile.warnings)]
        for line in lines:
            assert " ".join(line.split()) in found
        shown = zip(root.all("dt"), root.all("dd"), strict=True)
        assert table.setting.items() <= {(words_of(key), words_of(value)) for key, value in shown}
    assert any(profile.sentences for profiles in whole.profiles for profile in profiles)
    for title, lines in words.remarks(whole):
        for line in (title, *lines):
            assert " ".join(line.split()) in found
    for run in (run for table in whole.tables for row in table.rows for run in row.runs):
        assert " ".join(run.record.command.split()) in found
    assert whole.made in found


def test_the_answer_comes_first(whole, root):
    for table, section in zip(whole.tables, root.all("section"), strict=True):
        answers, shown = headline(table).answers, section.of("answer")
        for answer, node in zip(answers, shown, strict=True):
            found = words_of(node)
            for part in (answer.label, answer.points, answer.paired.verdict):
                assert part in found
            for cost, line in zip(answer.costs, node.all("li")[1:], strict=True):
                assert cost.words in words_of(line)
                assert bool(line.all("abbr")) == cost.unsteady
            places = [section.nodes.index(n) for n in (node, section.all("table")[0])]
            assert places == sorted(places)
    assert root.of("answer")


def test_the_tables_are_those_of_the_other_files(whole, root):
    tables = [cells(node) for node in root.all("table")]
    markdown = render.markdown(whole)
    rows = [[c.strip() for c in line[1:-1].split(" | ")] for line in markdown.splitlines()]
    for table in whole.tables:
        for parts in (columns(table), latency_columns(table), statistics_columns(table)):
            if parts:
                assert expected(parts) in tables
                assert all(line in rows for line in expected(parts))
        for parts in (facts.budget_columns(table), facts.search_columns(table)):
            assert not parts or expected(parts) in tables
    assert any(facts.budget_columns(table) for table in whole.tables)
    assert any(facts.search_columns(table) for table in whole.tables)


def test_the_best_of_each_column_is_marked(whole, root):
    for table, node in zip(whole.tables, root.of("main"), strict=True):
        rows = node.all("tbody")[0].all("tr")
        for place, column in enumerate(columns(table)):
            best = [n for n, row in enumerate(rows) if row.all("td")[place] in row.of("best")]
            assert tuple(best) == column.best
    assert root.of("best")


def test_an_unsteady_latency_carries_its_mark(whole, root):
    for table, node in zip(whole.tables, root.of("main"), strict=True):
        (place,) = [n for n, column in enumerate(columns(table)) if column.heading == "p50 ms"]
        for row, line in zip(table.rows, node.all("tbody")[0].all("tr"), strict=True):
            unsteady = row.stable(table.conditions[0]) is False
            assert bool(line.all("td")[place].all("abbr")) == unsteady


def test_mcnemar_tables_have_the_counts(whole, root):
    matrices = [t for t in root.all("table") if "reference right" in words_of(t)]
    pairs = [row.paired for table in whole.tables for row in table.rows if row.paired]
    tests = [test for pair in pairs for test in pair.mcnemar]
    assert tests
    for matrix, test in zip(matrices, tests, strict=True):
        counts = [[int(cell) for cell in line] for line in cells(matrix)]
        assert counts == [[test.both, test.only_other], [test.only_reference, test.neither]]


def test_nothing_is_loaded_and_nothing_else_runs(text, root):
    ids = [node.attributes["id"] for node in root.nodes if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for node in root.nodes:
        assert node.tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        for name, value in node.attributes.items():
            assert not name.startswith("on")
            assert name not in {"src", "srcset", "style", "action", "background", "poster"}
            if "href" in name:
                assert value[0] == "#"
                assert value[1:] in ids
            for reference in re.findall(r"url\(([^)]*)\)", value or ""):
                assert reference[0] == "#"
                assert reference[1:] in ids
    (style,), (script,) = root.all("style"), root.all("script")
    for part in (style.text, script.text):
        assert not re.search(r"url\(|@import|https?:|fetch|XMLHttp|import\(|eval", part)
    (policy,) = [m for m in root.all("meta") if "http-equiv" in m.attributes]
    rules = dict(rule.split(maxsplit=1) for rule in policy.attributes["content"].split("; "))
    assert rules["default-src"] == "'none'"
    for name, part in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(part.text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"


def test_figures_are_well_formed_and_every_row_is_a_mark_of_each(whole, text, root):
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)
    plotted = [measure.axis.split(",")[0] for measure in MEASURES if measure.axis]
    for number, (table, section) in enumerate(
        zip(whole.tables, root.all("section"), strict=True), 1
    ):
        ids = {f"t{number}r{index}" for index in range(len(table.rows))}
        lines = [n.attributes["data-row"] for n in section.all("tr") if "data-row" in n.attributes]
        assert set(lines) == ids
        assert len(lines) == len(ids)
        costs = [
            svg for svg in section.of("plot") if any(axis in words_of(svg) for axis in plotted)
        ]
        assert len(costs) == len(plotted) - 1 + len(table.conditions)
        for svg in costs:
            assert {mark.attributes["data-row"] for mark in svg.of("mark")} == ids
    for svg in root.of("plot"):
        assert svg.children[0].tag == "title"
        assert svg.of("mark")
        for mark in svg.of("mark"):
            assert mark.attributes["role"] == "img"
            assert len([c for c in mark.children if c.tag == "title" and c.text]) == 1


def test_every_colour_is_one_of_the_theme(root):
    (style,) = root.all("style")
    for node in (node for svg in root.all("svg") for node in svg.nodes):
        assert not {"fill", "stroke"} & node.attributes.keys() or "none" in node.attributes.values()
        for name in (node.attributes.get("class") or "").split():
            if re.match("[fs]-", name):
                assert f".{name}{{" in style.text


def test_the_same_comparison_gives_the_same_page(whole, text):
    assert html_report(whole) == text


def test_text_from_outside_is_only_text(write_run, tmp_path):
    for seed in range(2):
        folder = write_run(
            f"run{seed}",
            seed=seed,
            model=EVIL,
            conv=EVIL if seed else "standard",
            tags=[EVIL],
            data={"name": EVIL, "fingerprint": EVIL},
            command=EVIL,
            git_commit=EVIL,
            versions={EVIL: EVIL},
            machine={"cpu": EVIL},
        )
        result = folder / "result.json"
        values = json.loads(result.read_text())
        values["latency"][0]["device_name"] = EVIL
        result.write_text(json.dumps(values | {"name": EVIL}))
        with (folder / "metrics.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["epoch", "val/acc"], [1, 0.5]])
    failed = write_run("failed", status="failed", error=EVIL) / "result.json"
    failed.write_text(json.dumps(json.loads(failed.read_text()) | {"name": EVIL}))
    found = page(compared(tmp_path / "runs", by=("tags",)))
    assert [len(found.all(tag)) for tag in ("script", "img")] == [1, 0]
    assert not any(name.startswith("on") for node in found.nodes for name in node.attributes)
    assert words_of(found).count(EVIL) > 20
    assert EVIL not in found.all("script")[0].text
    assert any(EVIL in title.text for title in found.all("title")[1:])


def test_what_is_missing_is_said(write_run, tmp_path):
    write_run("run", latency=[], metrics={}, params=None, macs=None)
    found = page(compared(tmp_path / "runs"))
    text = words_of(found)
    for part in ("not measured", "metrics.csv", "dwsep profile", "no verdict", "not recorded"):
        assert part in text
    assert not found.of("mark")
    assert not found.of("best")


def test_no_finished_run(write_run, tmp_path):
    write_run("run", status="interrupted", error="stopped by the user")
    found = page(compared(tmp_path / "runs"))
    assert not found.all("section")
    assert "run: interrupted: stopped by the user" in words_of(found)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
CLICKS = """
const out = {};
const table = () => document.querySelectorAll("table.main")[NUMBER];
for (const head of table().tHead.rows[0].cells) {
  const click = () => {
    head.querySelector("button").click();
    return [...table().tBodies[0].rows].map((row) => row.cells[head.cellIndex].textContent);
  };
  out[head.textContent] = [click(), head.ariaSort, click(), head.ariaSort];
}
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key }));
const plot = document.querySelectorAll("section")[NUMBER].querySelector("svg.plot");
plot.querySelector("[tabindex='0']").focus();
out.tips = [document.querySelector("#tip").textContent];
press("ArrowRight");
out.tips.push(document.querySelector("#tip").textContent);
out.on = document.querySelectorAll("tr.on").length;
out.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.body.innerHTML = "<pre id=out></pre>";
document.querySelector("#out").textContent = JSON.stringify(out);
"""


def browsed(text: str, tmp_path: Path) -> Node:
    """The page after a browser without a network has run its script."""
    (tmp_path / "page.html").write_text(text)
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom")
    network_off = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [BROWSER, *options, network_off, (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return Document(done.stdout.replace("<!DOCTYPE html>", "", 1)).root


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_sorts_and_explains(whole, text, tmp_path):
    found = browsed(text, tmp_path)  # under the policy of the page
    assert [n for n in found.nodes if n.attributes.get("id") == "tip"]
    heads = [head for t in found.all("table") for head in t.all("th") if head.all("button")]
    assert len(heads) > 40

    number, table = max(enumerate(whole.tables), key=lambda found: len(found[1].rows))
    text = re.sub(r"<meta http-equiv=.*?>", "", text)  # lets our clicks in
    head, tail = text.rsplit("</script>", 1)
    clicks = CLICKS.replace("NUMBER", str(number))
    found = browsed(f"{head}{clicks}</script>{tail}", tmp_path)
    (result,) = (node for node in found.nodes if node.attributes.get("id") == "out")
    out = json.loads(result.text)
    up, rising, down, falling = out["test acc %"]
    assert [rising, falling] == ["ascending", "descending"]
    accuracies = sorted(f"{100 * row.accuracy.mean:.2f}" for row in table.rows)
    assert [cell.split()[0] for cell in up] == accuracies
    assert down == up[::-1]
    assert out["matched"][0][-1] == out["matched"][2][-1] == "-"  # what is missing stays below
    assert len(set(out["tips"])) == 2
    assert out["on"] == 1
    assert out["overflow"] <= 0
