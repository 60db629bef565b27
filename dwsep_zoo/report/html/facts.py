"""How the numbers came about: recipes, budgets, searches, memory, and where the runs were made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from dwsep_zoo.report.columns import (
    Column,
    conditions_name,
    decimals,
    ratio_text,
    row_label,
)
from dwsep_zoo.report.labels import MISSING, QUANTITIES, general
from dwsep_zoo.report.results import Run
from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.schema.measures import measures
from dwsep_zoo.schema.roofline import Roofline


def cost_words(table: Table, row: Row) -> str:
    """Such as ``costs 0.12x the parameters, 0.13x the MACs``: what it has of its reference's."""
    ratios: dict[str, float | None] = {}
    for measure in measures(place="table"):
        ratios[measure.label] = row.ratio(measure)
    for c in table.conditions:
        ratios[f"latency ({conditions_name(table, c)})"] = row.latency_ratio(c)
    parts = [f"{ratio_text(ratio)} the {name}" for name, ratio in ratios.items() if ratio]
    return f"costs {', '.join(parts)}" if parts else "its costs were not measured"


def conditions_columns(table: Table) -> list[Column]:
    """A line for each condition of latency: its name in the plots and all of it."""
    found = table.conditions
    return [
        Column("latency", tuple(conditions_name(table, c) for c in found), is_number=False),
        Column("conditions", tuple(map(str, found)), is_number=False),
    ]


def budget_columns(table: Table) -> list[Column]:
    """A line for each row whose width was solved for; nothing if there is none."""
    lines = [(row, row.match) for row in table.rows if row.match]
    if not lines:
        return []
    matches = [match for _, match in lines]
    return [
        Column("network", tuple(row_label(table, row) for row, _ in lines), is_number=False),
        Column(
            "equal", tuple(QUANTITIES.get(m.quantity, m.quantity) for m in matches), is_number=False
        ),
        Column("to conv", tuple(m.to for m in matches), is_number=False),
        Column("width as given", tuple(general(row.first.width_given) for row, _ in lines)),
        Column("width solved", tuple(general(row.record.width_mult) for row, _ in lines)),
        Column("target", tuple(_amount(m.quantity, m.target) for m in matches)),
        Column("achieved", tuple(_amount(m.quantity, m.achieved) for m in matches)),
        Column("residual", tuple(f"{m.residual:+.2%}" for m in matches)),
    ]


def search_columns(table: Table) -> list[Column]:
    """A line for each row whose recipe was searched for; nothing if there is none."""
    lines = [(row, row.record.search) for row in table.rows if row.record.search]
    if not lines:
        return []
    names = list(dict.fromkeys(name for row, _ in lines for name, _ in row.first.searched))
    accuracies = [search.best_val_acc for _, search in lines]
    return [
        Column("network", tuple(row_label(table, row) for row, _ in lines), is_number=False),
        Column("trials", tuple(general(search.trials) for _, search in lines)),
        *(
            Column(name, tuple(general(dict(row.first.searched).get(name)) for row, _ in lines))
            for name in names
        ),
        Column("best val acc %", decimals([None if a is None else 100 * a for a in accuracies])),
    ]


def recipe(table: Table) -> dict[str, str]:
    """The settings that all runs of the table share, those of the recipe first."""
    first = ("recipe.", "hparams_search.", "trainer.", "callbacks.", "data.", "input_size")

    def place(key: str) -> tuple[int, str]:
        return next(
            (n for n, prefix in enumerate(first) if key.startswith(prefix)), len(first)
        ), key

    return {key: table.setting[key] for key in sorted(table.setting, key=place)}


def kind_columns(roofline: Roofline) -> list[Column]:
    """A line for each network and kind of unit."""
    lines = [(network, unit) for network in roofline.networks for unit in network.units]
    return [
        Column("network", tuple(network.name for network, _ in lines), is_number=False),
        Column("kind", tuple(unit.kind for _, unit in lines), is_number=False),
        Column("layers", tuple(str(unit.layers) if unit.layers else MISSING for _, unit in lines)),
        Column("MACs M", tuple(_or_missing(unit.macs / 1e6, ",.4g") for _, unit in lines)),
        Column("MB moved", tuple(_or_missing(unit.bytes / 1e6, ",.3g") for _, unit in lines)),
        Column("ms", tuple(f"{unit.time_ms:.4f}" for _, unit in lines)),
        Column("share", tuple(_or_missing(u.time_ms / (n.sum_ms or 1), ".1%") for n, u in lines)),
        Column("bound", tuple(unit.bound for _, unit in lines), is_number=False),
        Column(
            "of the ceiling",
            tuple(f"{unit.attained:.1%}" if unit.layers else MISSING for _, unit in lines),
        ),
    ]


def origins(runs: Sequence[Run]) -> dict[str, dict[str, int]]:
    """Versions, commits, commands, machines and data, each with its number of runs."""
    readers: dict[str, Callable[[Run], str | None]] = {
        "command": lambda run: run.record.command,
        "git commit": lambda run: run.record.git_commit,
        "versions": lambda run: _pairs(run.record.versions),
        "machine": lambda run: _pairs(run.record.machine.plain()),
        "data": _data,
    }
    found = {name: Counter(filter(None, map(read, runs))) for name, read in readers.items()}
    return {name: values or {"not recorded": len(runs)} for name, values in found.items()}


def run_columns(runs: Sequence[Run]) -> list[Column]:
    """A line for each run."""
    texts: dict[str, Callable[[Run], str]] = {
        "run": lambda run: run.name,
        "model": lambda run: run.model,
        "conv": lambda run: run.conv,
        "width": lambda run: general(run.record.width_mult),
        "seed": lambda run: general(run.record.seed),
        "status": lambda run: run.record.status,
        "test acc %": lambda run: MISSING if run.accuracy is None else f"{100 * run.accuracy:.2f}",
        "finished": lambda run: run.record.finished or MISSING,
        "folder": lambda run: str(run.folder),
    }
    numbers = ("width", "seed", "test acc %")
    return [Column(name, tuple(map(of, runs)), name in numbers) for name, of in texts.items()]


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _data(run: Run) -> str:
    data = run.record.data
    parts = [
        data.name or "unnamed",
        *(f"{number:,} {name}" for name, number in data.splits.items()),
        f"subset {json.dumps(data.subset)}" if data.subset else "",
        f"fingerprint {data.fingerprint}" if data.fingerprint else "no fingerprint",
    ]
    return ", ".join(part for part in parts if part)


def _amount(quantity: str, value: float) -> str:
    return f"{value:,.4g} ms" if quantity == "latency" else f"{value / 1e6:,.5g} M"


def _or_missing(value: float, form: str) -> str:
    return f"{value:{form}}" if value else MISSING
