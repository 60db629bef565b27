"""The colours and markers of all figures, and of the page around them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
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
TAUGHT = "with a teacher"  # half filled
FRONT: dict[str, Any] = {"color": SOFT, "lw": 1.2, "ls": (0, (5, 3)), "zorder": 1}


class Styles:
    """The colours and markers of a table's rows.

    A colour is a conv type in every figure. So is a marker in a table of one model; in one of
    several models it is a model.

    Attributes:
        colours: by conv type and, where they vary, its options.
        markers: by the same, or by model.
    """

    def __init__(self, table: Table):
        self.table = table
        convs = dict(table.values(lambda row: (conv_label(table, row), row.first.conv)))
        models = table.values(lambda row: row.first.model)
        self.by_model = len(models) > 1
        self.colours = _assigned(convs, dict(zip(MARKERS, COLOURS, strict=False)), COLOURS)
        every = (*MARKERS.values(), *MORE_MARKERS)
        if self.by_model:
            self.markers = dict(zip(models, itertools.cycle(every), strict=False))
        else:
            self.markers = _assigned(convs, MARKERS, MORE_MARKERS)

    def __call__(self, row: Row, colour: str = "") -> dict[str, Any]:
        """Arguments of ``plot``; ``colour`` replaces that of the conv type."""
        conv = conv_label(self.table, row)
        colour = colour or self.colours[conv]
        return {
            "color": colour,
            "marker": self.markers[row.first.model if self.by_model else conv],
            "markersize": 8,
            "markeredgecolor": colour if row.match or row.first.taught else PAGE,
            "markerfacecolor": PAGE if row.match else colour,
            "markerfacecoloralt": PAGE,
            "fillstyle": "left" if row.first.taught else "full",
            "linestyle": "none",
        }


def _assigned(
    convs: Mapping[str, str], own: Mapping[str, str], more: Sequence[str]
) -> dict[str, str]:
    """A conv type's own sign for the first of its labels, another one for the others."""
    found: dict[str, str] = {}
    taken = {own[conv] for conv in convs.values() if conv in own}
    others = itertools.cycle([sign for sign in more if sign not in taken] or more)
    for label, conv in convs.items():
        sign = own.get(conv)
        found[label] = next(others) if sign is None or sign in found.values() else sign
    return found


def legend(table: Table) -> list[Artist]:
    """A handle for each colour, marker and line of the panels of cost."""
    styles = Styles(table)
    if styles.by_model:
        handles = [Line2D([], [], color=c, lw=4, label=n) for n, c in styles.colours.items()]
        handles += [key(marker, SOFT, model) for model, marker in styles.markers.items()]
    else:
        handles = [key(m, styles.colours[n], f"conv={n}") for n, m in styles.markers.items()]
    if any(row.match for row in table.rows):
        handles.append(key("o", SOFT, SOLVED, hollow=True))
    if any(row.first.taught for row in table.rows):
        handles.append(key("o", SOFT, TAUGHT))
        handles[-1].set(fillstyle="left", markerfacecoloralt=PAGE, mec=SOFT)
    return [*handles, Line2D([], [], **FRONT, label="not beaten in both accuracy and cost")]


def key(marker: str, colour: str, label: str = "", *, hollow: bool = False) -> Line2D:
    """A marker without a place, for legends."""
    handle = Line2D([], [], color=colour, marker=marker, ls="none", ms=8, label=label)
    handle.set(mec=colour if hollow else PAGE, mfc=PAGE if hollow else colour)
    return handle
