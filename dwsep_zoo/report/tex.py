r"""A comparison as LaTeX, to be read with ``\input``; needs ``booktabs`` and ``graphicx``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dwsep_zoo.report import words
from dwsep_zoo.report.columns import (
    PLUS_MINUS,
    Column,
    columns,
    group_ends,
    latency_columns,
    statistics_columns,
)
from dwsep_zoo.report.table import Table

_ESCAPED = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a line break it would be taken for its optional argument
    "]": "{]}",
    PLUS_MINUS: r"$\pm$",
    "\n": " ",
}
# Smaller where it is wider than the text, never larger.
_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"


def tex_text(tables: Sequence[Table]) -> str:
    """Each table, its latencies and its statistics as floats with the sentences below them."""
    floats = []
    for table in tables:
        heading = words.heading(table)
        notes = [*words.verdicts(table), *words.warnings(table), *words.legend(table)]
        if why := words.distinction(table):
            notes.insert(0, why)
        floats.append(_float(columns(table, dense=True), heading, notes, group_ends(table)))
        if latencies := latency_columns(table):
            floats.append(_float(latencies, f"latency of one batch: {heading}"))
        if statistics := statistics_columns(table):
            title = f"statistics of the accuracy, in points: {heading}"
            floats.append(_float(statistics, title, words.statistics_legend(table)))
    return "% needs \\usepackage{booktabs,graphicx}\n" + "\n".join(floats)


def escape(text: str) -> str:
    """Text as LaTeX prints it; characters beyond ASCII are left to its UTF-8."""
    escaped = "".join(_ESCAPED.get(character, character) for character in text)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)


def _float(
    parts: Sequence[Column], title: str, notes: Sequence[str] = (), ends: Sequence[bool] = ()
) -> str:
    def line(texts: Sequence[str]) -> str:
        return " & ".join(map(escape, texts)) + r" \\"

    body = []
    for index, texts in enumerate(zip(*(column.cells for column in parts), strict=True)):
        body.append(line(texts))
        if ends and ends[index]:
            body.append(r"\midrule")
    sentences = [escape(note) + r"\par" for note in notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(title)}}}",
            r"\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"{_FIT}{{\begin{{tabular}}{{{''.join('r' if c.is_number else 'l' for c in parts)}}}",
            r"\toprule",
            line([column.heading for column in parts]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            *([r"\par\medskip\raggedright", *sentences] if sentences else []),
            r"\end{table}",
            "",
        ]
    )
