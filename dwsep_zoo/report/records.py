"""A comparison for programs: CSV with a line a row, JSON with everything."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dwsep_zoo.report import words
from dwsep_zoo.report.columns import number_of_seeds, row_label
from dwsep_zoo.report.results import Conditions, Run
from dwsep_zoo.report.statistics import Interval, Paired, Sample
from dwsep_zoo.report.table import Row, Table

if TYPE_CHECKING:
    from dwsep_zoo.report.compare import Comparison

SCHEMA = 1
_KEPT = (
    *("started", "finished", "command", "versions", "git_commit", "machine", "data", "memory"),
    *("best_epoch", "epochs", "device", "compiled", "own_kernels", "in_turns"),
)


def csv_text(tables: tuple[Table, ...] | list[Table]) -> str:
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


def json_text(comparison: Comparison) -> str:
    """Everything: rows, statistics, latencies under all conditions, runs, settings, what failed."""
    options = comparison.options
    content = {
        "schema": SCHEMA,
        "made": comparison.made,
        "options": {
            "by": options.by,
            "reference": options.reference,
            "where": dict(options.where),
        },
        "tables": [_table(table) for table in comparison.tables],
        "unfinished": [
            {"run": r.name, "folder": str(r.folder), "status": r.status, "error": r.error}
            for r in comparison.unfinished
        ],
        "repeated": [{"run": r.name, "folder": str(r.folder)} for r in comparison.repeated],
        "problems": [{"file": str(p.path), "reason": p.reason} for p in comparison.problems],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _table(table: Table) -> dict[str, Any]:
    numbers = {id(row.first): number for number, row in enumerate(table.rows)}
    return {
        "heading": words.heading(table),
        "setting": table.setting,
        "distinction": dict(table.distinction),
        "rows": [_row(table, row, numbers) for row in table.rows],
        "verdicts": words.verdicts(table),
        "warnings": words.warnings(table),
        "legend": [*words.legend(table), *words.statistics_legend(table)],
    }


def _row(table: Table, row: Row, numbers: Mapping[int, int]) -> dict[str, Any]:
    run = row.first
    return {
        "label": row_label(table, row),
        "model": run.model,
        "conv": run.conv,
        "conv_options": run.record.get("conv_options") or {},
        "width_mult": run.width_mult,
        "output_stride": run.output_stride,
        "input_size": run.input_size,
        "match": asdict(row.match) if row.match else None,
        "searched": dict(run.searched) or None,
        "reference": numbers[id(row.reference.first)] if row.reference else None,
        "test_acc": _sample(row.accuracy),
        "test_acc_difference": row.accuracy_difference,
        "paired": _paired(row.paired) if row.paired else None,
        "params": run.params,
        "params_ratio": row.params_ratio,
        "macs": run.macs,
        "macs_ratio": row.macs_ratio,
        "size_bytes": run.record.get("size_bytes"),
        "latency": [_latency(row, c) for c in table.conditions if row.latency(c) is not None],
        "roofline": next((r for run in row.runs if (r := run.record.get("roofline"))), None),
        "train_s": _sample(row.train_s),
        "train_ratio": row.train_ratio,
        "images_per_second": _sample(row.images_per_second),
        "runs": [_run(run) for run in row.runs],
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": str(run.folder),
        "seed": run.seed,
        "tags": run.tags,
        "test_acc": run.accuracy,
        **{key: run.record.get(key) for key in _KEPT},
    }


def _sample(sample: Sample | None) -> dict[str, Any] | None:
    if sample is None:
        return None
    return {
        "n": sample.n,
        "mean": sample.mean,
        "std": sample.std,
        "interval": _interval(sample.interval),
        "values": sample.values,
    }


def _interval(interval: Interval | None) -> tuple[float, float] | None:
    return (interval.low, interval.high) if interval else None


def _paired(paired: Paired) -> dict[str, Any]:
    return {
        "seeds": paired.seeds,
        "differences": paired.differences,
        "mean": paired.mean,
        "t_interval": _interval(paired.t),
        "bootstrap_interval": _interval(paired.bootstrap),
        "verdict": paired.verdict,
        "words": paired.words,
        "mcnemar": [asdict(test) for test in paired.mcnemar],
        "no_mcnemar": [{"seed": seed, "reason": reason} for seed, reason in paired.no_mcnemar],
    }


def _latency(row: Row, conditions: Conditions) -> dict[str, Any]:
    return {
        **asdict(conditions),
        **{f"{name}_ms": row.percentile(conditions, name) for name in ("p50", "p10", "p90")},
        "stable": row.stable(conditions),
        "ratio": row.latency_ratio(conditions),
    }


def _record(number: int, table: Table, row: Row) -> dict[str, Any]:
    run, accuracy, train_s, speed = row.first, row.accuracy, row.train_s, row.images_per_second
    recipe = (run.record.get("config") or {}).get("recipe") or {}
    memory = run.record.get("memory") or {}
    setting, pair, match = table.setting, row.paired, row.match
    spread = accuracy.interval if accuracy else None
    t, bootstrap = (pair.t, pair.bootstrap) if pair else (None, None)
    record: dict[str, Any] = {
        "table": number,
        "model": run.model,
        "conv": run.conv,
        "conv_options": json.dumps(run.record.get("conv_options") or {}),
        "width_mult": run.width_mult,
        "output_stride": run.output_stride,
        "match": match.quantity if match else None,
        "match_to": match.to if match else None,
        "match_residual": match.residual if match else None,
        "data": setting.get("data.name"),
        "data_fingerprint": setting.get("data.fingerprint"),
        "input_size": words.size_text(run.input_size),
        "epochs": setting.get("trainer.max_epochs"),
        "batch_size": setting.get("data.batch_size"),
        "lr": recipe.get("lr"),
        "weight_decay": recipe.get("weight_decay"),
        "searched": " ".join(name for name, _ in run.searched),
        "n": number_of_seeds(row),
        "seeds": " ".join(str(run.seed) for run in row.runs),
        "test_acc_mean": accuracy.mean if accuracy else None,
        "test_acc_std": accuracy.std if accuracy else None,
        "test_acc_low": spread.low if spread else None,
        "test_acc_high": spread.high if spread else None,
        "reference": row_label(table, row.reference) if row.reference else None,
        "test_acc_difference": row.accuracy_difference,
        "difference_low": t.low if t else None,
        "difference_high": t.high if t else None,
        "difference_bootstrap_low": bootstrap.low if bootstrap else None,
        "difference_bootstrap_high": bootstrap.high if bootstrap else None,
        "verdict": pair.verdict if pair else None,
        "mcnemar_p": " ".join(f"{test.p_value:.6g}" for test in pair.mcnemar) if pair else None,
        "params": run.params,
        "params_ratio": row.params_ratio,
        "macs": run.macs,
        "macs_ratio": row.macs_ratio,
        "size_bytes": run.record.get("size_bytes"),
        "inference_mb": memory.get("inference_mb"),
        "training_mb": memory.get("training_mb"),
        "train_s": train_s.mean if train_s else None,
        "train_ratio": row.train_ratio,
        "images_per_second": speed.mean if speed else None,
        "machine": row.machine,
    }
    for index, conditions in enumerate(table.conditions, 1):
        prefix = f"latency{index}" if index > 1 else "latency"
        record |= {f"{prefix}_{key}": value for key, value in _latency(row, conditions).items()}
    record["runs"] = " ".join(run.name for run in row.runs)
    return record
