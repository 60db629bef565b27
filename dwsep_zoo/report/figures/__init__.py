"""The figures of a comparison: panels, drawn alone for the page and side by side for files."""

from __future__ import annotations

import textwrap

from dwsep_zoo.report.figures.cost import cost_panels
from dwsep_zoo.report.figures.panel import Drawing, side_by_side
from dwsep_zoo.report.figures.ratios import ratio_panel
from dwsep_zoo.report.figures.roofline import roofline_figure
from dwsep_zoo.report.figures.style import legend
from dwsep_zoo.report.table import Table
from dwsep_zoo.report.words import heading

__all__ = ["comparison_figure", "roofline_figure"]


def comparison_figure(table: Table) -> Drawing:
    """Accuracy against each cost, and the ratios to the references."""
    panels = cost_panels(table)
    if ratios := ratio_panel(table):
        panels.append(ratios)
    columns = 2 if len(panels) in (2, 4) else 3
    title = "\n".join(textwrap.wrap(heading(table), 45 * columns))
    return side_by_side(panels, title, legend(table), columns)
