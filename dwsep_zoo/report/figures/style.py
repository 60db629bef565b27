"""The colours and markers of all figures, and of the page around them."""

from __future__ import annotations

import itertools
from typing import Any

from matplotlib.artist import Artist
from matplotlib.lines import Line2D

from dwsep_zoo.report.columns import conv_label
from dwsep_zoo.report.table import Row, Table

# Each colour in the light and in the dark page. Figures are drawn with the first one, which the
# page replaces by a variable. Series are Okabe and Ito's, which colour-blind eyes tell apart.
THEME = {
    "ink": ("#1b1d21", "#e7e9ec"),
    "soft": ("#5a6069", "#a6adb7"),
    "line": ("#d8dbe0", "#393e46"),
    "page": ("#ffffff", "#15171b"),
    "over-dark": ("#fefefe", "#0d0f12"),  # words on dark bars, which are light in the dark page
    "over-light": ("#000001", "#0d0f12"),
    "blue": ("#0072b2", "#4ba3e3"),
    "vermilion": ("#d55e00", "#ff8a3d"),
    "green": ("#009e73", "#2cc79b"),
    "purple": ("#cc79a7", "#e39ac3"),
    "sky": ("#56b4e9", "#a3d9f7"),
    "orange": ("#e69f00", "#f5bd3d"),
    "wine": ("#882255", "#cf6da3"),
    "olive": ("#999933", "#c2c25a"),
    "sand": ("#ddcc77", "#eadd9a"),
    "teal": ("#44aa99", "#6fd0c0"),
    "grey": ("#cccccc", "#868d97"),
}
INK, SOFT, LINE, PAGE = (THEME[name][0] for name in ("ink", "soft", "line", "page"))
SERIES = ("blue", "vermilion", "green", "purple", "sky", "orange", "ink")
COLOURS = tuple(THEME[name][0] for name in SERIES)
MARKERS = {
    "standard": "s",
    "depthwise_separable": "o",
    "grouped": "^",
    "blueprint": "D",
    "spatially_separable": "v",
    "mixed": "P",
}
MORE_MARKERS = ("X", "p", "*", "<", ">", "h", "d")  # for conv types not above, and options
SOLVED = "width solved for an equal budget"  # drawn hollow
FRONT: dict[str, Any] = {"color": SOFT, "lw": 1.2, "ls": (0, (5, 3)), "zorder": 1}


def row_style(table: Table, row: Row, colour: str = "") -> dict[str, Any]:
    """Colour by model, or by conv type if there is one model; marker by conv type and options."""
    colour = colour or colours(table)[_series(table, row)]
    return {
        "color": colour,
        "marker": markers(table)[conv_label(table, row)],
        "markersize": 8,
        "markeredgecolor": colour if row.match else PAGE,
        "markerfacecolor": PAGE if row.match else colour,
        "linestyle": "none",
    }


def colours(table: Table) -> dict[str, str]:
    """A colour for each series of the table."""
    names = table.values(lambda row: _series(table, row))
    return dict(zip(names, itertools.cycle(COLOURS), strict=False))


def markers(table: Table) -> dict[str, str]:
    """A marker for each conv type and, where they vary, its options."""
    found: dict[str, str] = {}
    others = itertools.cycle(MORE_MARKERS)
    for conv, label in table.values(lambda row: (row.first.conv, conv_label(table, row))):
        own = MARKERS.get(conv)
        found[label] = own if own and own not in found.values() else next(others)
    return found


def legend(table: Table) -> list[Artist]:
    """A handle for each colour, marker and line of the panels of cost."""
    by_conv = _is_by_conv(table)
    series = colours(table)
    return [
        *(Line2D([], [], color=c, lw=4, label=n) for n, c in series.items() if not by_conv),
        *(
            key(marker, series[name] if by_conv else SOFT, f"conv={name}")
            for name, marker in markers(table).items()
        ),
        *([key("o", SOFT, SOLVED, hollow=True)] if any(row.match for row in table.rows) else []),
        Line2D([], [], **FRONT, label="not beaten in both accuracy and cost"),
    ]


def key(marker: str, colour: str, label: str = "", *, hollow: bool = False) -> Line2D:
    """A marker without a place, for legends."""
    handle = Line2D([], [], color=colour, marker=marker, ls="none", ms=8, label=label)
    handle.set(mec=colour if hollow else PAGE, mfc=PAGE if hollow else colour)
    return handle


def _is_by_conv(table: Table) -> bool:
    return len(table.values(lambda row: row.first.model)) == 1


def _series(table: Table, row: Row) -> str:
    return conv_label(table, row) if _is_by_conv(table) else row.first.model
