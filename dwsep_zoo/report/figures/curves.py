"""Accuracy and loss by epoch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dwsep_zoo.report.columns import conv_label, row_label
from dwsep_zoo.report.drawn import drawn
from dwsep_zoo.report.figures.panel import Mark, Panel, log_ticks
from dwsep_zoo.report.figures.style import COLOURS, Styles
from dwsep_zoo.report.labels import grouped
from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.schema.record import RunRecord

CURVES = {
    "val/acc": "validation accuracy, %",
    "train/acc": "training accuracy, %",
    "val/loss": "validation loss",
    "train/loss": "training loss",
}
MOST_NETWORKS = 6  # with a row of panels each
SHARES = "class of the larger share"
LOG_LOSS = 20  # a larger ratio of losses needs a logarithmic axis
Rows = Sequence[tuple[int, Row]]


def curve_panels(table: Table) -> list[tuple[str, list[Panel], list[Artist]]]:
    """Title, panels and legend for each network.

    A colour is one of its variants, a dashed line one whose width was solved for.
    """
    trained = [(n, row) for n, row in drawn(table) if any(run.epochs for run in row.runs)]
    networks = grouped(trained, lambda pair: pair[1].network)
    styles = Styles(table)
    found = []
    for (model, width, stride), rows in list(networks.items())[:MOST_NETWORKS]:
        colours = _colours(styles, rows)
        parts = (model, width and f"width {width:g}", stride and f"output stride {stride}")
        panels = [
            Panel(
                label.removesuffix(", %").capitalize(), partial(_draw, table, rows, colours, name)
            )
            for name, label in CURVES.items()
            if any(name in epoch for _, row in rows for run in row.runs for epoch in run.epochs)
        ]
        legend: list[Artist] = [
            Line2D([], [], **styles(row, colour), label=row_label(table, row))
            for colour, (_, row) in zip(colours, rows, strict=True)
        ]
        if panels:
            found.append((", ".join(str(part) for part in parts if part), panels, legend))
    return found


def _draw(table: Table, rows: Rows, colours: Sequence[str], name: str, axes: Axes) -> list[Mark]:
    scale = 100.0 if name.endswith("acc") else 1.0
    label = CURVES[name]
    if name == "train/acc" and any(mixes(run.record) for _, row in rows for run in row.runs):
        label = f"{label}\n({SHARES})"
    axes.set(xlabel="epoch", ylabel=label)
    marks: list[Mark] = []
    styles = Styles(table)
    for colour, (index, row) in zip(colours, rows, strict=True):
        curves = {
            run.record.seed: {e["epoch"]: scale * e[name] for e in run.epochs if name in e}
            for run in row.runs
        }
        curves = {seed: curve for seed, curve in curves.items() if curve}
        # The mean is of the epochs that all seeds have: one that stopped early would make a step.
        common = sorted(set.intersection(*map(set, curves.values()))) if curves else []
        if not common:
            continue
        who, dashes = row_label(table, row), "--" if row.match else "-"
        if len(curves) > 1:
            for seed, curve in curves.items():
                epochs = sorted(curve)
                values = [curve[epoch] for epoch in epochs]
                (line,) = axes.plot(epochs, values, color=colour, lw=0.9, ls=dashes, alpha=0.45)
                marks.append(Mark(line, f"{who}, seed {seed}", index))
        means = [statistics.fmean(curve[epoch] for curve in curves.values()) for epoch in common]
        axes.plot(common, means, color=colour, lw=2, ls=dashes)
        (artist,) = axes.plot(common[-1], means[-1], **styles(row, colour), zorder=3)
        what = f"mean of {len(curves)} seeds" if len(curves) > 1 else "one seed"
        text = f"{who}, {what}: {CURVES[name]} {means[-1]:.4g} after epoch {common[-1]:g}"
        marks.append(Mark(artist, text, index))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    values = [e[name] for _, row in rows for run in row.runs for e in run.epochs if name in e]
    if scale == 1 and values and 0 < LOG_LOSS * min(values) < max(values):
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
    return marks


def mixes(record: RunRecord) -> bool:
    """Whether training images were mixed, so that each has two classes."""
    return any(record.configured(f"recipe.{key}") is not None for key in ("mixup", "cutmix"))


def _colours(styles: Styles, rows: Rows) -> list[str]:
    """Those of the conv types; one for each row if several rows are of one type."""
    convs = [(conv_label(styles.table, row), bool(row.match)) for _, row in rows]
    if len(set(convs)) == len(rows):
        return [styles.colours[conv] for conv, _ in convs]
    return [COLOURS[place % len(COLOURS)] for place in range(len(rows))]
