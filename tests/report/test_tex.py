"""The structure of the LaTeX; no TeX is needed."""

from __future__ import annotations

import re

import pytest

from dwsep_zoo.report.results import load_results
from dwsep_zoo.report.table import make_tables
from dwsep_zoo.report.tex import escape, tex_text


def tex_of(path):
    return tex_text(make_tables(load_results([path])[0])[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 50 %", r"a\_b \& 50 \%"),
        ("{#$}", r"\{\#\$\}"),
        ("\\~^", r"\textbackslash{}\textasciitilde{}\textasciicircum{}"),
        ("p<0.05 [1]", r"p\textless{}0.05 {[}1{]}"),
        ("1 \u00b12", r"1 $\pm$2"),
        ("-1.5, p-values, 1-2", r"$-$1.5, p-values, 1-2"),
        ("two\nlines", "two lines"),
    ],
)
def test_escape(text, expected):
    assert escape(text) == expected


def test_tables_are_whole(write_run, tmp_path, latency, as_separable):
    two = [latency, latency | {"runtime": "a_b"}]
    for seed in (0, 1):
        write_run(f"a{seed}", seed=seed, right=range(40 + seed), latency=two)
        write_run(f"b{seed}", seed=seed, right=range(3, 40), latency=two, **as_separable)
        write_run(f"x{seed}", seed=seed, model="x", latency=two)
    text = tex_of(tmp_path)
    depth = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            depth.append(name)
        else:
            assert depth.pop() == name
    assert depth == []
    tabulars = re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert len(tabulars) == 3  # rows, latencies, statistics
    # Each is scaled down to the width of the text if it is wider.
    fit = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{\begin{tabular}"
    assert text.count(fit) == text.count(r"\end{tabular}}") == 3
    assert text.startswith("% needs \\usepackage{booktabs,graphicx}\n")
    for columns, body in tabulars:
        lines = [line for line in body.strip().splitlines() if not line.startswith("\\")]
        assert all(line.endswith(r" \\") for line in lines)
        assert {line.count(" & ") for line in lines} == {len(columns) - 1}
        assert body.count(r"\toprule") == body.count(r"\bottomrule") == 1
    assert tabulars[0][1].count(r"\midrule") == 2  # below the heading, and between the models
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0
    assert r"mobilenet\_v1" in text
    assert not re.search(r"(?<!\\)[_#^%](?! needs)", text)


def test_split_tables_say_why(write_run, tmp_path):
    write_run("a")
    write_run("b", config__recipe__lr=0.1)
    text = tex_of(tmp_path)
    assert text.count("not comparable with the other tables, here: recipe.lr=") == 2
