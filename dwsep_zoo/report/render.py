"""A table as text: for the terminal, as markdown, as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dwsep_zoo.report.results import Conditions, Problem, Run
from dwsep_zoo.report.table import REFERENCE, Row, Table

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MISSING = "-"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
SHOWN_LATENCIES = 2  # more make the table too wide; the CSV has all


@dataclass(frozen=True)
class Column:
    """A column of texts; words stand left, numbers right."""

    heading: str
    cells: tuple[str, ...]
    is_number: bool = True


def columns(table: Table) -> list[Column]:
    """The columns of ``table``; width, output stride and number of seeds only where they vary."""
    rows = table.rows
    result = [
        Column("model", tuple(row.first.model for row in rows), is_number=False),
        Column("conv", tuple(conv_label(table, row) for row in rows), is_number=False),
    ]
    if len(_widths(table)) > 1:
        result.append(Column("width", tuple(_general(row.first.width_mult) for row in rows)))
    if len(_strides(table)) > 1:
        result.append(Column("stride", tuple(_general(row.first.output_stride) for row in rows)))
    result.append(Column("test acc %", tuple(_accuracy(row) for row in rows)))
    if len(seed_numbers(table)) > 1:
        result.append(Column("n", tuple(str(_n(row)) for row in rows)))
    result += [
        Column("diff", tuple(_signed(row.accuracy_difference) for row in rows)),
        Column("params M", _millions([row.first.params for row in rows])),
        Column("ratio", tuple(ratio_text(row.params_ratio) for row in rows)),
        Column("MACs M", _millions([row.first.macs for row in rows])),
        Column("ratio", tuple(ratio_text(row.macs_ratio) for row in rows)),
    ]
    for heading, conditions in shown_latencies(table):
        result += [
            Column(f"{heading} ms", _decimals([row.latency(conditions) for row in rows])),
            Column("ratio", tuple(ratio_text(row.latency_ratio(conditions)) for row in rows)),
        ]
    result += [
        Column("train s", _decimals([row.train_s.mean if row.train_s else None for row in rows])),
        Column("ratio", tuple(ratio_text(row.train_ratio) for row in rows)),
    ]
    return result


def heading(table: Table) -> str:
    """What all rows have in common, such as ``digits, input 1x32x32, 20 epochs, batch 64``."""
    setting = table.setting
    size = table.rows[0].first.input_size
    epochs = setting.get("trainer.max_epochs")
    batch = setting.get("data.batch_size")
    widths, strides = _widths(table), _strides(table)
    numbers = seed_numbers(table)
    parts = [
        setting.get("data.name", "unknown data"),
        f"input {_size(size)}" if size else None,
        f"{epochs} epochs" if epochs else None,
        f"batch {batch}" if batch else None,
        f"width {_general(widths[0])}" if len(widths) == 1 and widths[0] not in (1, None) else None,
        f"output stride {strides[0]}" if len(strides) == 1 and strides[0] else None,
        _seeds(numbers[0]) if len(numbers) == 1 else None,
    ]
    return ", ".join(part for part in parts if part)


def distinction(table: Table) -> str:
    """Why the table stands alone, or nothing if it is the only one."""
    if not table.distinction:
        return ""
    # Two fingerprints mean nothing to a reader, but that the data differ does.
    pairs = [
        f"{key}={value[:8] if key == 'data.fingerprint' else value}"
        for key, value in table.distinction
    ]
    return "not comparable with the other tables, here: " + ", ".join(pairs)


def legend(table: Table) -> list[str]:
    """Sentences without which the numbers can be misread."""
    size = _size(table.rows[0].first.input_size)
    convs = table.values(lambda row: row.first.conv)
    alone = [row for row in table.rows if row.reference is None]
    lines = [_accuracy_legend(table)]
    if len(alone) < len(table.rows):
        lines.append(
            f"diff (points of accuracy) and ratio: against conv={REFERENCE} of the same model, "
            "width and output stride"
        )
    if alone:
        names = ", ".join(dict.fromkeys(row.first.model for row in alone))
        lines.append(
            f"no diff and no ratio for {names}: no finished conv={REFERENCE} run with the same "
            "model, width, output stride and recipe"
        )
    if REFERENCE in convs:
        lines.append(
            f"{REFERENCE}: one dense k x k convolution replaces depthwise + pointwise; the norm "
            "and activation between the two disappear; a squeeze-and-excite gate acts on its input"
        )
    lines.append(
        "1 MAC = one multiply-add = 2 FLOPs; convolutions and linear layers are counted"
        + (f", for one {size} image" if size else "")
    )
    lines += _latency_legend(table)
    machines = table.values(lambda row: row.machine)
    if len(machines) > 1:
        lines.append("train s: the machines differ; no ratio across machines")
    elif machines[0]:
        lines.append(f"train s: training with validation; {machines[0]}")
    return lines


def rich_table(table: Table, *, dense: bool = False) -> RichTable:
    """For the terminal: about 110 characters wide for the usual names, ``dense`` about 100."""
    from rich import box
    from rich.table import Table as RichTable

    padding = (0, 0 if dense else 1, 0, 0)
    rich = RichTable(box=box.SIMPLE_HEAD, padding=padding, pad_edge=False)
    parts = columns(table)
    for column in parts:
        style = "dim" if column.heading == "ratio" else ""
        rich.add_column(
            column.heading.replace(" ", "\n", 1) if column.is_number else column.heading,
            justify="right" if column.is_number else "left",
            overflow="fold",
            style=style,
        )
    for index, row in enumerate(table.rows):
        following = table.rows[index + 1 : index + 2]
        rich.add_row(
            *(column.cells[index] for column in parts),
            end_section=bool(following) and following[0].first.model != row.first.model,
        )
    return rich


def markdown(
    tables: Sequence[Table],
    *,
    unfinished: Sequence[Run] = (),
    repeated: Sequence[Run] = (),
    problems: Sequence[Problem] = (),
) -> str:
    """The whole comparison; the tables are aligned also for a reader of the plain text."""
    blocks = ["# Comparison"]
    if not tables:
        blocks.append("No run has finished.")
    for table in tables:
        blocks += [f"## {heading(table)}", distinction(table), markdown_table(table)]
        blocks.append("\n".join(f"- {line}" for line in legend(table)))
    for title, lines in remarks(unfinished, repeated, problems):
        blocks.append(f"## {title}")
        blocks.append("\n".join(f"- {line}" for line in lines))
    return "\n\n".join(block for block in blocks if block) + "\n"


def markdown_table(table: Table) -> str:
    lines = []
    for column in columns(table):
        width = max(3, *map(len, (column.heading, *column.cells)))
        rule = "-" * (width - 1) + ":" if column.is_number else "-" * width
        cells = (cell.replace("|", "\\|") for cell in column.cells)
        texts = [column.heading, rule, *cells]
        lines.append([t.rjust(width) if column.is_number else t.ljust(width) for t in texts])
    return "\n".join("| " + " | ".join(line) + " |" for line in zip(*lines, strict=True))


def remarks(
    unfinished: Iterable[Run], repeated: Iterable[Run], problems: Iterable[Problem]
) -> list[tuple[str, list[str]]]:
    """Titles and lines about everything that was found but is in no table."""
    groups = [
        (
            "Runs without a result",
            [f"{r.name}: {r.status}" + (f": {r.error}" if r.error else "") for r in unfinished],
        ),
        (
            "Runs that were repeated later with the same seed (the later one is in the table)",
            [str(run.folder) for run in repeated],
        ),
        ("Files that could not be read", [f"{p.path}: {p.reason}" for p in problems]),
    ]
    return [(title, lines) for title, lines in groups if lines]


def csv_text(tables: Sequence[Table]) -> str:
    """One line per row, raw numbers: accuracies 0-1, MACs, milliseconds; empty: not measured.

    A second condition of latency has its columns under ``latency2_``, and so on.
    """
    records = [
        _record(number, table, row) for number, table in enumerate(tables, 1) for row in table.rows
    ]
    names = list(dict.fromkeys(name for record in records for name in record))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def _record(number: int, table: Table, row: Row) -> dict[str, Any]:
    run, accuracy, train_s, speed = row.first, row.accuracy, row.train_s, row.images_per_second
    setting = table.setting
    record: dict[str, Any] = {
        "table": number,
        "model": run.model,
        "conv": run.conv,
        "conv_options": json.dumps(run.record.get("conv_options") or {}),
        "width_mult": run.width_mult,
        "output_stride": run.output_stride,
        "data": setting.get("data.name"),
        "data_fingerprint": setting.get("data.fingerprint"),
        "input_size": _size(run.input_size),
        "epochs": setting.get("trainer.max_epochs"),
        "batch_size": setting.get("data.batch_size"),
        "n": _n(row),
        "seeds": " ".join(str(run.seed) for run in row.runs),
        "test_acc_mean": accuracy.mean if accuracy else None,
        "test_acc_std": accuracy.std if accuracy else None,
        "test_acc_difference": row.accuracy_difference,
        "params": run.params,
        "params_ratio": row.params_ratio,
        "macs": run.macs,
        "macs_ratio": row.macs_ratio,
        "train_s": train_s.mean if train_s else None,
        "train_ratio": row.train_ratio,
        "images_per_second": speed.mean if speed else None,
        "machine": row.machine,
    }
    for index, conditions in enumerate(table.conditions, 1):
        prefix = f"latency{index}" if index > 1 else "latency"
        record[f"{prefix}_p50_ms"] = row.latency(conditions)
        record[f"{prefix}_ratio"] = row.latency_ratio(conditions)
        record |= {f"{prefix}_{key}": value for key, value in asdict(conditions).items()}
    record["runs"] = " ".join(run.name for run in row.runs)
    return record


def conv_label(table: Table, row: Row) -> str:
    """The conv type, with its options where the table has it with several."""
    run = row.first
    options = [dict(r.first.conv_options) for r in table.rows if r.first.conv == run.conv]
    keys = sorted({key for option in options for key in option})
    differ = [key for key in keys if len({option.get(key) for option in options}) > 1]
    own = dict(run.conv_options)
    return " ".join([run.conv, *(f"{key}={own.get(key, MISSING)}" for key in differ)])


def shown_latencies(table: Table) -> list[tuple[str, Conditions]]:
    """Pairs of a short name and conditions."""
    conditions = table.conditions[:SHOWN_LATENCIES]
    if len(conditions) == 1:
        return [("p50", conditions[0])]
    return [(f"p50{letter}", c) for letter, c in zip("ab", conditions, strict=False)]


def seed_numbers(table: Table) -> list[int]:
    """The distinct numbers of runs behind the accuracies."""
    return table.values(_n)


def _accuracy_legend(table: Table) -> str:
    numbers = seed_numbers(table)
    if max(numbers) == 0:
        return "no test accuracy was measured"
    if max(numbers) == 1:
        return "test accuracy: of a single seed, which gives no spread; differences may be chance"
    line = f"test accuracy: mean {PLUS_MINUS} sample standard deviation over n runs, one per seed"
    return line + ("; n=1 gives no spread" if min(numbers) < 2 else "")


def _latency_legend(table: Table) -> list[str]:
    shown = shown_latencies(table)
    lines = [f"{name}: median time of one batch; {conditions}" for name, conditions in shown]
    if len(shown) > 1:
        lines.append("latencies under different conditions have no ratio to each other")
    if more := len(table.conditions) - len(shown):
        lines.append(f"latencies under {more} more conditions: comparison.csv")
    return lines


def _widths(table: Table) -> list[float | None]:
    return table.values(lambda row: row.first.width_mult)


def _strides(table: Table) -> list[int | None]:
    return table.values(lambda row: row.first.output_stride)


def _seeds(number: int) -> str | None:
    return None if number == 0 else "1 seed" if number == 1 else f"n={number} seeds"


def _size(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _general(value: float | None) -> str:
    return MISSING if value is None else f"{value:g}"


def _n(row: Row) -> int:
    return row.accuracy.n if row.accuracy else 0


def _accuracy(row: Row) -> str:
    if row.accuracy is None:
        return MISSING
    mean, std = row.accuracy.mean, row.accuracy.std
    return f"{100 * mean:.2f}" + ("" if std is None else f" {PLUS_MINUS}{100 * std:.2f}")


def _signed(difference: float | None) -> str:
    if difference is None:
        return MISSING
    return f"{100 * difference:+.2f}" if difference else "0"


def ratio_text(ratio: float | None) -> str:
    """Such as ``0.12x``."""
    if ratio is None:
        return MISSING
    return "1x" if ratio == 1 else f"{ratio:.{_places(ratio)}f}x"


def _millions(values: Sequence[float | None]) -> tuple[str, ...]:
    return _decimals([None if value is None else value / 1e6 for value in values])


def _decimals(values: Sequence[float | None]) -> tuple[str, ...]:
    """With as many decimals, equal in the whole column, as the smallest value needs."""
    places = _places(min((value for value in values if value), default=1))
    return tuple(MISSING if value is None else f"{value:,.{places}f}" for value in values)


def _places(value: float) -> int:
    """Decimals that show two or three digits of a positive value, at most five."""
    return next((n for n, limit in enumerate((100, 10, 0.1, 0.01, 0.001)) if value >= limit), 5)
