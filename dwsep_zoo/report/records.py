"""A comparison for programs: CSV with a line per row, JSON with everything."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from dwsep_zoo.report import words
from dwsep_zoo.report.class_pairs import ClassPair
from dwsep_zoo.report.columns import number_of_seeds, row_label
from dwsep_zoo.report.comparison import Comparison
from dwsep_zoo.report.results import Run
from dwsep_zoo.report.statistics import Interval, Paired, Sample
from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.schema.measures import BALANCED_ACC, Place, measures
from dwsep_zoo.schema.record import Conditions

SCHEMA = 1
_KEPT = (
    *("started", "finished", "command", "versions", "git_commit", "machine", "data", "memory"),
    *("best_epoch", "epochs", "device", "compiled", "own_kernels", "in_turns", "teacher"),
)


def csv_text(tables: Sequence[Table]) -> str:
    """One line per row, raw numbers; an empty cell was not measured.

    Accuracies, differences and residuals are fractions of 1, where the other formats show per cent
    and points. ``params`` and ``macs`` are counts; ``_mb`` is 1e6 bytes, ``_ms`` milliseconds for
    one batch, ``_s`` seconds. A second condition of latency has columns under ``latency2_``, and so
    on.
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
    """Rows, statistics, all latencies, runs, settings and failures, in raw units."""
    content = {
        "schema": SCHEMA,
        "made": comparison.made,
        "options": asdict(comparison.options),
        "tables": [
            _table(table) | {"classes": [_classes(pair) for pair in pairs]}
            for table, pairs in zip(comparison.tables, comparison.classes, strict=True)
        ],
        "unfinished": [
            {"run": r.name, "folder": str(r.folder), "status": r.record.status, "error": r.error}
            for r in comparison.unfinished
        ],
        "repeated": [{"run": r.name, "folder": str(r.folder)} for r in comparison.repeated],
        "problems": [{"file": str(p.path), "reason": p.reason} for p in comparison.problems],
    }
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    """Plain data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(table: Table) -> dict[str, object]:
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


def _row(table: Table, row: Row, numbers: Mapping[int, int]) -> dict[str, object]:
    run, record, balanced = row.first, row.record, row.sample(BALANCED_ACC)
    measured = _measured(row, "json")
    for measure in measures(place="json"):
        if measure.over_seeds == "mean":
            values = row.values(measure)
            measured[measure.name] = asdict(Sample.of(values)) if values else None
    match = row.match.plain() | {"width_mult": run.width_given} if row.match else None
    return {
        "label": row_label(table, row),
        "model": run.model,
        "conv": run.conv,
        "conv_options": record.conv_options,
        "width_mult": record.width_mult,
        "output_stride": record.output_stride,
        "input_size": record.input_size,
        "match": match,
        "searched": dict(run.searched) or None,
        "teacher": record.teacher.plain() if record.teacher else None,
        "reference": numbers[id(row.reference.first)] if row.reference else None,
        "test_acc": asdict(row.accuracy) if row.accuracy else None,
        "balanced_acc": asdict(balanced) if balanced else None,
        "test_acc_difference": row.accuracy_difference,
        "paired": _paired(row.paired) if row.paired else None,
        **measured,
        "latency": [_latency(row, c) for c in table.conditions if row.latency(c) is not None],
        "roofline": next((r for run in row.runs if (r := run.record.roofline)), None),
        "runs": [_run(run) for run in row.runs],
    }


def _run(run: Run) -> dict[str, object]:
    plain = run.record.plain()
    return {
        "name": run.name,
        "folder": str(run.folder),
        "seed": run.record.seed,
        "tags": run.tags,
        "test_acc": run.accuracy,
        **{key: plain.get(key) for key in _KEPT},
    }


def _paired(paired: Paired) -> dict[str, object]:
    return {
        "seeds": paired.seeds,
        "differences": paired.differences,
        "mean": paired.mean,
        "t_interval": paired.t,
        "bootstrap_interval": paired.bootstrap,
        "verdict": paired.verdict,
        "words": paired.words,
        "mcnemar": [asdict(test) for test in paired.mcnemar],
        "no_mcnemar": [{"seed": seed, "reason": reason} for seed, reason in paired.no_mcnemar],
    }


def _classes(pair: ClassPair) -> dict[str, object]:
    """A pair class by class; images are counted from 0 in the order of the test set."""
    return {
        "label": pair.label,
        "reference": pair.reference_label,
        "seeds": pair.seeds,
        "number_of_classes": pair.number,
        "differences": [
            {
                "class": one.name,
                "images": one.images,
                "reference": one.reference,
                "this": one.other,
                "difference": one.paired.mean,
                "t_interval": one.paired.t,
                "verdict": one.paired.verdict,
            }
            for one in pair.differences
        ],
        "only_reference_right": pair.only_reference.tolist(),
        "only_this_right": pair.only_other.tolist(),
    }


def _latency(row: Row, conditions: Conditions) -> dict[str, object]:
    return {
        **conditions.model_dump(),
        **{f"{name}_ms": row.latency(conditions, name) for name in ("p50", "p10", "p90")},
        "stable": row.stable(conditions),
        "ratio": row.latency_ratio(conditions),
    }


def _record(number: int, table: Table, row: Row) -> dict[str, object]:
    run, accuracy, setting, pair = row.record, row.accuracy, table.setting, row.paired
    balanced = row.sample(BALANCED_ACC)
    match: Mapping[str, object] = row.match.plain() if row.match else {}
    record: dict[str, object] = {
        "table": number,
        "model": run.model,
        "conv": run.conv,
        "conv_options": json.dumps(run.conv_options),
        "width_mult": run.width_mult,
        "output_stride": run.output_stride,
        "match": match.get("quantity"),
        "match_to": match.get("to"),
        "match_residual": match.get("residual"),
        "data": setting.get("data.name"),
        "data_fingerprint": setting.get("data.fingerprint"),
        "input_size": words.size_text(run.input_size),
        "epochs": setting.get("trainer.max_epochs"),
        "batch_size": setting.get("data.batch_size"),
        "lr": run.configured("recipe.lr"),
        "weight_decay": run.configured("recipe.weight_decay"),
        "searched": " ".join(name for name, _ in row.first.searched),
        "teacher": row.first.taught or None,
        "n": number_of_seeds(row),
        "seeds": " ".join(str(run.record.seed) for run in row.runs),
        "test_acc_mean": accuracy.mean if accuracy else None,
        "test_acc_std": accuracy.std if accuracy else None,
        **_ends("test_acc", accuracy.interval if accuracy else None),
        "balanced_acc_mean": balanced.mean if balanced else None,
        "reference": row_label(table, row.reference) if row.reference else None,
        "test_acc_difference": row.accuracy_difference,
        **_ends("difference", pair.t if pair else None),
        **_ends("difference_bootstrap", pair.bootstrap if pair else None),
        "verdict": pair.verdict if pair else None,
        "mcnemar_p": " ".join(f"{test.p_value:.6g}" for test in pair.mcnemar) if pair else None,
        **_measured(row, "csv"),
        "machine": row.machine,
    }
    for index, conditions in enumerate(table.conditions, 1):
        prefix = f"latency{index}" if index > 1 else "latency"
        record |= {f"{prefix}_{key}": value for key, value in _latency(row, conditions).items()}
    record["runs"] = " ".join(run.name for run in row.runs)
    return record


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _measured(row: Row, place: Place) -> dict[str, object]:
    """The measures of a format by name, and their ratios to the reference."""
    measured: dict[str, object] = {}
    for measure in measures(place=place):
        measured[measure.name] = row.value(measure)
        if measure.ratio:
            measured[measure.ratio] = row.ratio(measure)
    return measured
