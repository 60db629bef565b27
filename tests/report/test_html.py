"""The page: well-formed, whole, harmless, without the network; its plots are where values are."""

from __future__ import annotations

import base64
import csv
import hashlib
import itertools
import json
import math
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dwsep_zoo.analysis.peaks import Bandwidth, Peaks
from dwsep_zoo.analysis.bottleneck import sentence
from dwsep_zoo.analysis.roofline import KindTime, LayerTime, NetworkTime, Roofline
from dwsep_zoo.report import render, words
from dwsep_zoo.report.columns import columns, latency_columns, statistics_columns
from dwsep_zoo.report.compare import Comparison, collect
from dwsep_zoo.report.html import facts, html_report
from dwsep_zoo.report.html.charts import ALL_MARKERS, curves, differences, pareto
from dwsep_zoo.report.html.plot import Axis, axis, marker_path
from dwsep_zoo.report.html.timing import roof, time_by_kind
from dwsep_zoo.report.profiles import profiles
from dwsep_zoo.report.table import Options

VOID = {"meta", "link", "br", "hr", "img", "input", "base", "col"}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7 * 7 }}"
TRAFFIC = (Bandwidth(2**18, 100.0), Bandwidth(2**28, 20.0))


def compared(*paths: Path, **options) -> Comparison:
    """As ``compare`` makes it, without files and pictures."""
    comparison = collect(paths, Path("somewhere"), Options(**options))
    return replace(comparison, made="2026-01-02T03:04:05+00:00")


def write_epochs(folder: Path, rows) -> None:
    """``metrics.csv`` from dictionaries."""
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "train/loss", "train/acc", "val/loss", "val/acc"])
        writer.writeheader()
        writer.writerows(rows)


def roofline(name: str, depthwise_ms: float = 0.5) -> dict:
    """As in ``result.json``."""
    layers = (
        LayerTime("stem.conv", "stem", 10**6, 10**6, 2.0, 0.25, "memory", 0.2),
        LayerTime("a.depthwise", "depthwise", 10**6, 10**6, 2.0, depthwise_ms, "memory", 0.1),
        LayerTime("a.norm", "norm/act", 0, 10**6, 0.0, 0.125, "memory", 0.4),
    )
    parts = [
        KindTime(la.kind, 1, la.macs, la.bytes, la.time_ms, la.bound, la.attained) for la in layers
    ]
    units = (*parts, KindTime("rest", 0, 0, 0, 0.125, "overhead", 0.0))
    total = sum(unit.time_ms for unit in units)
    return asdict(
        Roofline(
            device="cpu",
            device_name="Test CPU",
            threads=2,
            batch_size=1,
            input_size=(1, 32, 32),
            precision="fp32",
            memory_format="channels_last",
            runtime="eager",
            runs=10,
            peaks=Peaks(300.0, TRAFFIC, {}),
            networks=(NetworkTime(name, total, total, layers, units),),
        )
    )


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None]
    children: list = field(default_factory=list)

    def all(self, tag: str) -> list[Node]:
        own = [self] if self.tag == tag else []
        nodes = (child for child in self.children if isinstance(child, Node))
        return own + [found for child in nodes for found in child.all(tag)]

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


def cells(table: Node) -> list[list[str]]:
    (body,) = table.all("tbody")
    return [[words_of(cell) for cell in row.all("td")] for row in body.all("tr")]


def expected(parts) -> list[list[str]]:
    lines = zip(*(part.cells for part in parts), strict=True)
    return [[" ".join(cell.split()) for cell in line] for line in lines]


@pytest.fixture
def whole(write_run, as_separable, as_matched, search, latency, tmp_path) -> Comparison:
    """Everything that a report can have: budgets, searches, curves, rooflines, failures."""
    slow = latency | {"p50_ms": 9.0, "batch_size": 8, "runtime": "onnxruntime", "stable": False}
    kinds = {"standard": {}, "separable": as_separable, "matched": as_matched}
    quick = {"standard": 4.0, "separable": 3.0, "matched": 5.0}
    for (name, changes), seed in itertools.product(kinds.items(), range(3)):
        folder = write_run(
            f"{name}-s{seed}",
            seed=seed,
            right=range(seed, 40 + 2 * seed + len(name) % 3),
            latency=[latency | {"p50_ms": quick[name]}, slow | {"p50_ms": 9.0 + seed}],
            search=search | {"best": {"lr": 0.1 * len(name), "weight_decay": 1e-4}},
            roofline=roofline(name, 0.5 + len(name)),
            memory={"peak_mb": 100.0, "inference_mb": 3.5, "training_mb": 9.5},
            command=f"train.py -m conv={name}",
            versions={"torch": "2.9.0", "timm": None},
            git_commit="0123abcd+",
            **changes,
        )
        write_epochs(
            folder,
            [
                {
                    "epoch": epoch,
                    "train/loss": 2.0 / epoch,
                    "train/acc": 0.2 * epoch,
                    "val/loss": 100.0 / epoch**3,
                    "val/acc": 0.1 * epoch + 0.01 * seed,
                }
                for epoch in range(1, 5 - (seed == 2))
            ],
        )
    write_run("other", model="mobilenet_v2", seed=5)
    write_run("failed", status="failed", error="RuntimeError: out of memory", seed=7)
    best = {"lr": 0.1 * len("standard"), "weight_decay": 1e-4}
    write_run("again", finished="2025-01-01T00:00:00+00:00", search=search | {"best": best})
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "result.json").write_text("{")
    return compared(tmp_path / "runs")


def test_every_part_is_there(whole):
    root = page(whole)
    text = words_of(root)
    assert len(whole.tables) == 2  # searched and not
    for table in whole.tables:
        lines = [words.heading(table), words.distinction(table), *words.verdicts(table)]
        lines += words.warnings(table) + words.legend(table) + words.statistics_legend(table)
        for line in lines:
            assert line in text
        shown = zip(root.all("dt"), root.all("dd"), strict=True)
        assert table.setting.items() <= {(words_of(key), words_of(value)) for key, value in shown}
        for conditions in table.conditions:
            assert str(conditions) in text
    remarks = words.remarks(whole.unfinished, whole.repeated, whole.problems)
    assert len(remarks) == 3
    for title, lines in remarks:
        for line in (title, *lines):
            assert " ".join(line.split()) in text
    assert "RuntimeError: out of memory" in text
    assert str(whole.problems[0].path) in text
    for origin in ("train.py -m conv=matched", "0123abcd+", "torch 2.9.0", "cpu Test CPU"):
        assert origin in text
    assert "fingerprint 0123456789abcdef" in text
    assert whole.made in text


def test_the_tables_are_those_of_the_other_files(whole):
    tables = [cells(node) for node in page(whole).all("table")]
    for table in whole.tables:
        assert expected(columns(table)) in tables
        if parts := latency_columns(table):
            assert expected(parts) in tables
        if parts := statistics_columns(table):
            assert expected(parts) in tables
    searched = next(table for table in whole.tables if len(table.rows) == 3)
    budget, search = facts.budget_columns(searched), facts.search_columns(searched)
    assert expected(budget) in tables
    assert expected(search) in tables
    assert expected(budget)[0][1:] == [
        "MACs",
        "standard",
        "1",
        "2.8",
        "400 M",
        "396 M",
        "-1.00%",
    ]
    assert [line[2] for line in expected(search)] == ["0.8", "0.9", "0.7"]
    sizes = expected(facts.size_columns(searched))
    assert sizes[0][1:] == ["3.50", "9.50", "100"]
    assert sizes in tables


def test_mcnemar_tables_have_the_counts(whole):
    matrices = [t for t in page(whole).all("table") if "reference right" in words_of(t)]
    tests = [
        test
        for table in whole.tables
        for row in table.rows
        if row.paired
        for test in row.paired.mcnemar
    ]
    assert len(tests) == 6
    for matrix, test in zip(matrices, tests, strict=True):
        counts = [[int(cell) for cell in line] for line in cells(matrix)]
        assert counts == [[test.both, test.only_other], [test.only_reference, test.neither]]
        assert sum(map(sum, counts)) == 50


def test_nothing_is_loaded_and_nothing_else_runs(whole):
    root = page(whole)
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
    (style,), (script,) = root.all("style"), root.all("script")
    for part in (style.text, script.text):
        assert not re.search(r"url\(|@import|https?:|fetch|XMLHttp|import\(|eval", part)
    (policy,) = [m for m in root.all("meta") if "http-equiv" in m.attributes]
    rules = dict(rule.split(maxsplit=1) for rule in policy.attributes["content"].split("; "))
    assert rules["default-src"] == "'none'"
    for name, part in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(part.text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"


def test_text_from_outside_is_only_text(write_run, tmp_path):
    for seed in range(2):
        record = write_run(
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
            roofline=roofline(EVIL),
        )
        result = record / "result.json"
        values = json.loads(result.read_text())
        values["latency"][0]["device_name"] = EVIL
        result.write_text(json.dumps(values | {"name": EVIL}))
        write_epochs(record, [{"epoch": 1, "val/acc": 0.5}])
    failed = write_run("failed", status="failed", error=EVIL)
    (failed / "result.json").write_text(
        json.dumps(json.loads((failed / "result.json").read_text()) | {"name": EVIL})
    )
    root = page(compared(tmp_path / "runs", by=("tags",)))
    assert [len(root.all(tag)) for tag in ("script", "img")] == [1, 0]
    assert not any(name.startswith("on") for node in root.nodes for name in node.attributes)
    assert words_of(root).count(EVIL) > 20
    assert EVIL not in root.all("script")[0].text


def test_marks_lead_to_rows_of_the_table(whole):
    root = page(whole)
    rows = [row.attributes["data-row"] for row in root.all("tr") if "data-row" in row.attributes]
    assert len(rows) == len(set(rows)) == sum(len(table.rows) for table in whole.tables)
    marks = [n for n in root.nodes if n.tag in ("g", "rect") and "data-row" in n.attributes]
    assert {mark.attributes["data-row"] for mark in marks} == set(rows)
    for mark in marks:
        assert mark.attributes["role"] == "img"
        assert mark.attributes["aria-label"] == mark.all("title")[0].text


def value_at(scale: Axis, pixel: float) -> float:
    share = (pixel - scale.start) / (scale.end - scale.start)
    if scale.log:
        return scale.low * (scale.high / scale.low) ** share
    return scale.low + share * (scale.high - scale.low)


def test_points_stand_at_accuracy_and_cost(whole):
    for table in whole.tables:
        plots = pareto(table, 1).plots
        assert len(plots) == 2 + len(table.conditions)
        costs = [lambda row: row.first.params / 1e6, lambda row: row.first.macs / 1e6]
        costs += [lambda row, c=c: row.latency(c) for c in table.conditions]
        for plot, cost in zip(plots, costs, strict=True):
            found = [(value_at(plot.x, p.x), value_at(plot.y, p.y)) for p in plot.points]
            wanted = [(cost(row), 100 * row.accuracy.mean) for row in table.rows]
            assert found == [pytest.approx(point) for point in wanted]
            for line in plot.lines:
                for x, y in line.points:
                    assert plot.x.start - 5 <= x <= plot.x.end + 5  # whiskers
                    assert plot.y.end - 0.01 <= y <= plot.y.start + 0.01


def test_a_solved_width_is_hollow(whole):
    for table in whole.tables:
        chart = pareto(table, 1)
        solved = [row.match is not None for row in table.rows]
        for plot in chart.plots:
            assert ["hollow" in point.style.split() for point in plot.points] == solved
        keys = [key.text for key in chart.legend if "hollow" in key.style]
        assert keys == ["width solved for an equal budget"] * any(solved)
    assert sum(row.match is not None for table in whole.tables for row in table.rows) == 1


def test_front_has_the_rows_that_none_beats(write_run, tmp_path):
    networks = {"a": (10, 0.5), "b": (20, 0.4), "c": (30, 0.8), "d": (40, 0.8), "e": (5, 0.1)}
    for name, (macs, accuracy) in networks.items():
        write_run(name, model=name, macs=macs * 10**6, **{"metrics": {"test/acc": accuracy}})
    (table,) = compared(tmp_path / "runs").tables
    plot = pareto(table, 1).plots[1]
    (front,) = [line for line in plot.lines if line.style == "front"]
    corners = {(round(x, 3), round(y, 3)) for x, y in front.points}
    places = {
        row.first.model: (round(p.x, 3), round(p.y, 3))
        for row, p in zip(table.rows, plot.points, strict=True)
    }
    assert {name for name, place in places.items() if place in corners} == {"e", "a", "c"}
    heights = [y for _, y in front.points]
    assert heights == sorted(heights, reverse=True)  # pixels go down


def test_curves_are_means_of_the_epochs_that_all_seeds_have(whole):
    searched = next(table for table in whole.tables if len(table.rows) == 3)
    charts = curves(searched, 1)
    assert len(charts) == 1  # a matched row belongs to the network of its width as given
    (chart,) = charts
    assert [len(chart.plots), len(chart.legend)] == [4, 3]
    accuracy, _, loss, _ = chart.plots
    means = [line for line in accuracy.lines if line.style.startswith("mean")]
    seeds = [line for line in accuracy.lines if line.style.startswith("seed")]
    assert [len(means), len(seeds)] == [3, 9]
    for line in means:
        found = [(value_at(accuracy.x, x), value_at(accuracy.y, y)) for x, y in line.points]
        assert found == [pytest.approx((e, 10 * e + 1)) for e in (1, 2, 3)]  # seed 2 stopped at 3
    assert sorted(len(line.points) for line in seeds) == 3 * [3] + 6 * [4]
    assert loss.y.log  # from 100 to 1.6
    first = next(line for line in loss.lines if line.style.startswith("mean"))
    assert value_at(loss.y, first.points[1][1]) == pytest.approx(100 / 8)


def test_differences_stand_at_their_values(whole):
    searched = next(table for table in whole.tables if len(table.rows) == 3)
    (plot,) = differences(searched, 1).plots
    pairs = [row.paired for row in searched.rows if row.paired]
    found = [value_at(plot.x, point.x) for point in plot.points]
    wanted = [100 * value for pair in pairs for value in (*pair.differences, pair.mean)]
    assert found == [pytest.approx(value) for value in wanted]
    ends = [
        tuple(value_at(plot.x, x) for x, _ in line.points)
        for line in plot.lines
        if line.style == "interval k0"
    ]
    assert ends == [pytest.approx((100 * p.t.low, 100 * p.t.high)) for p in pairs if p.t]


def test_bars_are_as_long_as_the_times():
    found = Roofline.from_dict(roofline("a", 2.5))
    (plot,) = time_by_kind(found, ["t1r0"]).plots
    per_ms = (plot.x.end - plot.x.start) / (plot.x.high - plot.x.low)
    widths = [box.width / per_ms for box in plot.boxes]
    assert widths == [pytest.approx(unit.time_ms) for unit in found.networks[0].units]
    for left, right in itertools.pairwise(plot.boxes):
        assert left.x + left.width == pytest.approx(right.x)
    (layers,) = roof(found, ["t1r0"]).plots
    places = [(value_at(layers.x, p.x), value_at(layers.y, p.y)) for p in layers.points]
    assert places == [pytest.approx((2.0, 2e6 / t / 1e6)) for t in (0.25, 2.5)]  # GFLOP/s
    for ceiling in layers.lines:
        assert value_at(layers.y, ceiling.points[-1][1]) == pytest.approx(300.0)


def test_rooflines_measured_in_turns_are_side_by_side(whole, write_run, tmp_path):
    searched = next(table for table in whole.tables if len(table.rows) == 3)
    ((profile,), problems) = profiles(searched)
    assert not problems
    assert profile.rows == (0, 1, 2)
    names = [network.name for network in profile.roofline.networks]
    (eager,) = [c for c in searched.conditions if c.runtime == "eager"]
    speed = 1 / searched.rows[1].latency_ratio(eager)  # the one of the table
    said = sentence(profile.roofline, names[0], names[1], speed)
    assert profile.sentences[0].endswith(said)
    assert said != sentence(profile.roofline, names[0], names[1])
    markdown = render.markdown(whole.tables, profiles=whole.profiles)
    for line in profile.sentences:
        assert line in words_of(page(whole))
        assert f"\n- {line}\n" in markdown


def test_parts_that_are_not_the_whole_are_said(write_run, tmp_path):
    record = roofline("a")
    record["networks"][0]["total_ms"] *= 2
    write_run("run", roofline=record)
    comparison = compared(tmp_path / "runs")
    (line,) = comparison.profiles[0][0].warnings
    assert line.startswith("standard: its units add up to 50 % of its time")
    assert line in words_of(page(comparison))
    assert line in render.markdown(comparison.tables, profiles=comparison.profiles)


@pytest.mark.parametrize("damage", [{"device": "cpu"}, {"networks": []}, [1]])
def test_a_damaged_roofline_is_named(write_run, tmp_path, damage):
    record = damage if isinstance(damage, list) else roofline("a") | damage
    if damage == {"device": "cpu"}:
        record.pop("peaks")
    write_run("run", roofline=record)
    text = words_of(page(compared(tmp_path / "runs")))
    assert "result.json: roofline: " in text


def test_what_is_missing_is_said(write_run, tmp_path):
    write_run("run", latency=[], metrics={}, params=None, macs=None)
    text = words_of(page(compared(tmp_path / "runs")))
    assert "No run has a roofline" in text
    assert "dwsep profile" in text
    assert "No run has a metrics.csv" in text
    assert "No test accuracy, or no cost, was measured" in text
    assert "no verdict" in text
    assert "searched for none" in text
    assert "not recorded" in text  # git commit


def test_a_single_seed_has_no_interval(write_run, as_separable, tmp_path):
    write_run("a")
    write_run("b", **as_separable)
    comparison = compared(tmp_path / "runs")
    root = page(comparison)
    assert "one seed, no interval" in words_of(root)
    (plot,) = differences(comparison.tables[0], 1).plots
    assert not [line for line in plot.lines if "interval" in line.style]


def test_no_finished_run(write_run, tmp_path):
    write_run("run", status="interrupted", error="stopped by the user")
    text = words_of(page(compared(tmp_path / "runs")))
    assert "No run has finished." in text
    assert "run: interrupted: stopped by the user" in text


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [(1.0,), (0.3, 0.31), (2.0, 5.0), (0.002, 4000.0), (12.5, 99.9), (1e-4, 2e-4), (3e6, 2e9)],
)
def test_an_axis_shows_all_values(values, log):
    scale = axis("x", values, 50, 450, log=log)
    for value in values:
        assert 50 <= scale.at(value) <= 450
        assert value_at(scale, scale.at(value)) == pytest.approx(value)
    places = [place for place, _ in scale.ticks]
    assert places == sorted(places)
    assert 1 <= len(places) <= 8
    texts = [float(text.replace(",", "")) for _, text in scale.ticks]
    assert [scale.at(v) for v in texts] == pytest.approx(places)


def test_limits_hold():
    scale = axis("accuracy", [90.0, 120.0], 300, 0, limits=(0, 100))
    assert scale.high == 100
    assert scale.clip(120.0) == 100
    assert math.isfinite(axis("accuracy", [100.0], 300, 0, limits=(0, 100)).at(100.0))


@pytest.mark.parametrize("marker", ALL_MARKERS)
def test_every_marker_is_a_closed_path_around_the_origin(marker):
    path = marker_path(marker, 10)
    numbers = [float(text) for text in re.findall(r"-?\d+\.\d+", path)]
    assert path.startswith("M")
    assert path.endswith("Z")
    assert all(abs(number) <= 10 for number in numbers)
    assert min(numbers) < 0 < max(numbers)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
CLICKS = """
const out = {};
for (const head of document.querySelector("table.sortable").tHead.rows[0].cells) {
  const click = () => {
    head.querySelector("button").click();
    const rows = [...document.querySelector("table.sortable").tBodies[0].rows];
    return rows.map((row) => row.cells[head.cellIndex].textContent);
  };
  out[head.textContent] = [click(), head.ariaSort, click(), head.ariaSort];
}
document.querySelector("svg.plot .point").focus();
out.tip = document.querySelector("#tip").textContent;
document.body.innerHTML = "<pre id=out></pre>";
document.querySelector("#out").textContent = JSON.stringify(out);
"""


def browsed(text: str, tmp_path: Path) -> Node:
    """What becomes of a page in a browser without a network."""
    (tmp_path / "page.html").write_text(text)
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom")
    network_off = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [BROWSER, *options, network_off, (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return Document(done.stdout.lower().replace("<!doctype html>", "", 1)).root


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_sorts_and_explains(whole, tmp_path):
    text = html_report(whole)
    root = browsed(text, tmp_path)  # under the policy of the page
    assert [n for n in root.nodes if n.attributes.get("id") == "tip"]
    heads = [head for t in root.all("table") for head in t.all("th") if head.all("button")]
    assert len(heads) > 40

    text = re.sub(r"<meta http-equiv=.*?>", "", text)  # lets our clicks in
    head, tail = text.rsplit("</script>", 1)
    root = browsed(f"{head}{CLICKS}</script>{tail}", tmp_path)
    (result,) = (node for node in root.nodes if node.attributes.get("id") == "out")
    found = json.loads(result.text)
    up, rising, down, falling = found["test acc %"]
    assert [rising, falling] == ["ascending", "descending"]
    assert [float(cell.split()[0]) for cell in up] == [82.0, 84.0, 86.0]
    assert down == up[::-1]
    assert found["macs m"][0] == ["50.0", "396.0", "400.0"]
    assert found["matched"][2][1:] == ["-", "-"]  # what is missing stays below
    assert found["matched"][0][1:] == ["-", "-"]
    assert found["tip"].startswith("standard: 86.00 %, 95 % interval [")
