"""The sentences around a table, the same in every format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dwsep_zoo.report.columns import (
    PLUS_MINUS,
    QUANTITIES,
    conditions_name,
    general,
    match_text,
    row_label,
    seed_numbers,
    strides,
    widths,
)
from dwsep_zoo.report.results import Problem, Run
from dwsep_zoo.report.statistics import Paired
from dwsep_zoo.report.table import REFERENCE, Options, Row, Table

RESIDUAL = 0.02  # of a budget; beyond it budgets are not equal
SIGNIFICANT = 0.05
COARSE = 10  # fewer seeds give the bootstrap too few resamples


def heading(table: Table) -> str:
    """What all rows have in common, such as ``digits, input 1x32x32, 20 epochs, batch 64``."""
    setting = table.setting
    size = table.rows[0].first.input_size
    epochs = setting.get("trainer.max_epochs")
    batch = setting.get("data.batch_size")
    factors, steps, numbers = widths(table), strides(table), seed_numbers(table)
    parts = [
        data_name(table.rows[0].first),
        f"input {size_text(size)}" if size else None,
        f"{epochs} epochs" if epochs else None,
        f"batch {batch}" if batch else None,
        f"width {general(factors[0])}" if len(factors) == 1 and factors[0] not in (1, None) else "",
        f"output stride {steps[0]}" if len(steps) == 1 and steps[0] else None,
        _seeds(numbers[0]) if len(numbers) == 1 else None,
    ]
    return ", ".join(part for part in parts if part)


def data_name(run: Run) -> str:
    """Of the data set; ``data=folder`` can be anything, so that the folder is named too."""
    name = dict(run.setting).get("data.name", "unknown data")
    root = ((run.record.get("config") or {}).get("data") or {}).get("root")
    return f"{name} {Path(str(root)).name}" if name == "folder" and root else name


def scope(options: Options) -> str:
    """What was asked for, or nothing."""
    parts = [f"{name}={','.join(values)}" for name, values in options.where.items()]
    return "only runs with " + " ".join(parts) if parts else ""


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


def verdicts(table: Table) -> list[str]:
    """Of each row, how its accuracy compares with its reference."""
    models = table.values(lambda row: row.first.model)
    lines = []
    for row in table.rows:
        reference, pair = row.reference, row.paired
        if reference is None or pair is None:
            continue
        label = row_label(table, row)
        same = reference.first.model == row.first.model
        other = row_label(table, reference, model=not same)
        if len(models) == 1:  # which labels then leave out
            label = f"{models[0]} {label}"
        said = f"{pair.words}{_residual_words(row)}{_mcnemar_words(pair)}"
        lines.append(f"{label} against {other}: {said}")
    return lines


def warnings(table: Table) -> list[str]:
    """What is not as it should be for a fair comparison."""
    lines: list[str] = []
    untested: dict[str, dict[str, list[int]]] = {}  # seeds by reason and row
    for row in table.rows:
        label = row_label(table, row)
        if row.match and abs(row.match.residual) > RESIDUAL:
            lines.append(
                f"{label}: the budgets are not equal: {match_text(row.match)} of "
                f"{row.match.to}'s; widths are rounded to 8 channels"
            )
        if row.ambiguous:
            names = "; ".join(row_label(table, other) for other in row.ambiguous)
            lines.append(
                f"{label}: several rows could be its reference, so that it has none: {names}"
            )
        if row.reference and not row.is_reference and row.accuracy and row.reference.accuracy:
            if row.paired is None:
                lines.append(f"{label}: no seed in common with its reference: not compared")
            else:
                left_out = set(row.seeds) ^ set(row.reference.seeds)
                if left_out:
                    seeds = _listed(sorted(left_out))
                    lines.append(f"{label}: diff is without seed {seeds}, which only one has")
        for seed, reason in row.paired.no_mcnemar if row.paired else ():
            untested.setdefault(reason, {}).setdefault(label, []).append(seed)
    for reason, labels in untested.items():
        which = "; ".join(f"{name}, seed {_listed(seeds)}" for name, seeds in labels.items())
        lines.append(f"no McNemar test ({reason}): {which}")
    apart = [
        row_label(table, row)
        for row in table.rows
        if not (row.is_reference or row.measured_in_turns)
        and any(row.latency_ratio(conditions) for conditions in table.conditions)
    ]
    if apart:
        lines.append(
            "latency: measured at another time than the reference's, not in turns with it; the "
            f"ratio holds what else the machine did: {', '.join(apart)}"
        )
    for conditions in table.conditions:
        unsteady = [row_label(table, r) for r in table.rows if r.stable(conditions) is False]
        if unsteady:
            name = conditions_name(table, conditions)
            lines.append(f"latency {name}: the times were not steady: {', '.join(unsteady)}")
    return lines


def legend(table: Table) -> list[str]:
    """Sentences without which the numbers can be misread."""
    size = size_text(table.rows[0].first.input_size)
    convs = table.values(lambda row: row.first.conv)
    lines = _data_legend(table)
    lines += [_accuracy_legend(table), *_checkpoint_legend(table), *_reference_legend(table)]
    if any(row.match for row in table.rows):
        lines.append(
            "matched: the width was solved to come as near to the cost of the reference as widths "
            "in steps of 8 channels can; what is achieved beyond it, in percent"
        )
    lines += _recipe_legend(table) + _kept_apart(table)
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
    machines = sorted({run.machine for row in table.rows for run in row.runs})
    if len(machines) > 1:
        names = "; ".join(name or "not recorded" for name in machines)
        lines.append(f"train s: no mean and no ratio across what differs: {names}")
    elif machines[0]:
        lines.append(f"train s: training with validation; {machines[0]}")
    return lines


def statistics_legend(table: Table) -> list[str]:
    """Sentences without which the statistics can be misread."""
    pairs = [row.paired for row in table.rows if row.paired]
    lines = []
    numbers = [pair.n for pair in pairs if pair.bootstrap]
    if numbers:
        line = "bootstrap: BCa over the seeds"
        if min(numbers) < COARSE:
            line += f"; with n={min(numbers)} there are few resamples: coarse and too narrow"
        lines.append(line + "; the verdict goes by Student's t")
    if len([pair for pair in pairs if pair.t]) > 1:
        lines.append(
            f"each of the {len(pairs)} intervals is one of 95 % by itself; with many comparisons, "
            "one in twenty misses by chance"
        )
    if any(pair.mcnemar for pair in pairs):
        lines.append(
            "McNemar: exact test on the test images that only one of two networks of a seed gets "
            "right; it is about these two networks, the interval about training again; the seeds "
            "share their images, so that their p-values are not combined"
        )
    return lines


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


def size_text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _residual_words(row: Row) -> str:
    """Such as ``, with 15 % more MACs``, where a budget that was to be equal is not."""
    if row.match is None or abs(row.match.residual) <= RESIDUAL:
        return ""
    quantity, residual = row.match.quantity, row.match.residual
    fewer = "less" if quantity == "latency" else "fewer"
    how = "more" if residual > 0 else fewer
    return f", with {100 * abs(residual):.0f} % {how} {QUANTITIES.get(quantity, quantity)}"


def _mcnemar_words(paired: Paired) -> str:
    tests = paired.mcnemar
    if not tests:
        return ""
    if len(tests) == 1:
        return f"; McNemar p={tests[0].p_value:.2g} for this pair of networks"
    found = [test.only_other > test.only_reference for test in tests if test.p_value < SIGNIFICANT]
    ways = {"for": found.count(True), "against": found.count(False)}
    told = ", ".join(f"{number} {way}" for way, number in ways.items() if number)
    text = f"; McNemar p<{SIGNIFICANT} in {len(found)} of {len(tests)} seeds"
    return f"{text} ({told})" if told else text


def _accuracy_legend(table: Table) -> str:
    numbers = seed_numbers(table)
    if max(numbers) == 0:
        return "no test accuracy was measured"
    if max(numbers) == 1:
        return "test accuracy: of a single seed, which gives no interval; differences may be chance"
    line = (
        f"test accuracy: mean {PLUS_MINUS} half the width of its 95 % confidence interval "
        "(Student's t) over n runs, one per seed"
    )
    return line + ("; n=1 gives no interval" if min(numbers) < 2 else "")


def _data_legend(table: Table) -> list[str]:
    run = table.rows[0].first
    if not run.splits:
        return []
    images = ", ".join(f"{number:,} {name}" for name, number in run.splits)
    subset = " of a subset" if (run.record.get("data") or {}).get("subset") else ""
    return [f"data: {data_name(run)}, {images} images{subset}"]


def _checkpoint_legend(table: Table) -> list[str]:
    """Which state of the networks was tested, and whether they were still learning at the end."""
    runs = [run for row in table.rows for run in row.runs if run.accuracy is not None]
    trained = [run for run in runs if run.last_epoch]
    ends = [
        (epoch, last) for run in trained if (epoch := run.best_epoch) and (last := run.last_epoch)
    ]
    if not trained:
        return []
    if not ends:
        return ["tested: the state after the last epoch; there was no validation"]
    best = sorted({epoch for epoch, _ in ends})
    epochs = f"epoch {best[0]}" if len(best) == 1 else f"epochs {best[0]} to {best[-1]}"
    line = f"tested: the checkpoint that was best in validation, of {epochs}"
    if late := sum(epoch == last for epoch, last in ends):
        line += (
            f"; in {late} of {len(ends)} runs that was the last epoch: accuracy may still have "
            "been rising, and more epochs may change the order"
        )
    return [line]


def _reference_legend(table: Table) -> list[str]:
    alone = [row for row in table.rows if row.reference is None and not row.ambiguous]
    reference = table.options.reference
    whose = "" if "/" in reference else " of the same model, width and output stride"
    lines = []
    if any(row.reference and not row.match for row in table.rows):
        lines.append(
            f"diff (points of accuracy, mean over the common seeds, 95 % interval) and ratio: "
            f"against conv={reference}{whose}"
        )
    if any(row.reference and row.match for row in table.rows):
        lines.append(
            "diff and ratio of a matched row: against the network whose budget it was given"
        )
    if alone:
        names = ", ".join(dict.fromkeys(_needs(row, reference) for row in alone))
        lines.append(f"no diff and no ratio for {names}: no such run has finished with this recipe")
    return lines


def _needs(row: Row, reference: str) -> str:
    model, width, stride = row.network
    if "/" in reference and not row.match:
        return f"{row.first.model} (needs {reference})"
    conv = row.match.to if row.match else reference
    return f"{model} (needs conv={conv}, width {general(width)}, output stride {general(stride)})"


def _recipe_legend(table: Table) -> list[str]:
    run = table.rows[0].first
    if not run.searched:
        known = {key: table.setting.get(f"recipe.{key}") for key in ("lr", "weight_decay")}
        values = ", ".join(f"{key} {value}" for key, value in known.items() if value)
        return [
            "one recipe for all" + (f" ({values})" if values else "") + ", searched for no "
            "variant; a recipe can favour one of them by points (hparams_search=optuna)"
        ]
    names = " and ".join(_recipe_word(key) for key, _ in run.searched)
    trials = table.setting.get("hparams_search.trials", "an unknown number of")
    lines = [f"{names} searched per variant: {trials} trials each, on validation"]
    for row in table.rows:
        best = ", ".join(f"{_recipe_word(key)} {value:g}" for key, value in row.first.searched)
        lines.append(f"found for {row_label(table, row)}: {best}")
    return lines


def _recipe_word(key: str) -> str:
    return {"lr": "learning rate", "weight_decay": "weight decay"}.get(key, key)


def _kept_apart(table: Table) -> list[str]:
    """Rows that are equal in all fields of ``by`` where the user named more than the default."""
    by = table.options.by
    if by == Options().by:
        return []
    groups: dict[tuple[tuple[str, ...], ...], list[Row]] = {}
    for row in table.rows:
        groups.setdefault(tuple(table.key(name, row) for name in by), []).append(row)
    number = sum(len(rows) for rows in groups.values() if len(rows) > 1)
    if not number:
        return []
    return [
        f"{number} rows are equal in {', '.join(by)} but differ in something else: kept apart, "
        "not averaged"
    ]


def _latency_legend(table: Table) -> list[str]:
    if not table.conditions:
        return []
    lines = [f"p50: median time of one batch; {table.conditions[0]}"]
    if len(table.conditions) > 1:
        lines.append("latencies under different conditions have no ratio to each other")
    steady = [row.stable(c) for row in table.rows for c in table.conditions]
    if any(entry is not None for entry in steady):
        lines.append(
            "steady: the median moved by less than 5 % while measuring, and p10 and p90 are less "
            "than 30 % apart"
        )
    return lines


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _seeds(number: int) -> str | None:
    return None if number == 0 else "1 seed" if number == 1 else f"n={number} seeds"
