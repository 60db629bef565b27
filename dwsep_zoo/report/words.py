"""The sentences around a table, common to all formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from dwsep_zoo.report.columns import (
    PLUS_MINUS,
    conditions_name,
    match_text,
    number_of_seeds,
    row_label,
)
from dwsep_zoo.report.comparison import MOST_TABLES, Comparison
from dwsep_zoo.report.drawn import left_out
from dwsep_zoo.report.labels import QUANTITIES, general
from dwsep_zoo.report.lessons import teacher_legend
from dwsep_zoo.report.results import Run
from dwsep_zoo.report.statistics import SIGNIFICANT, Paired
from dwsep_zoo.report.table import REFERENCE, Options, Row, Table
from dwsep_zoo.report.verdict import RULE

NO_RUN = "no run has finished"
RESIDUAL = 0.02  # of a budget; beyond it budgets are not equal
_RECIPE = {"lr": "learning rate", "weight_decay": "weight decay"}
COARSE = 10  # fewer seeds give the bootstrap too few resamples


def heading(table: Table) -> str:
    """The common terms of all rows, such as ``digits, input 1x32x32, 20 epochs, batch 64``."""
    setting, record = table.setting, table.rows[0].record
    factors = table.values(lambda row: row.record.width_mult)
    steps = table.values(lambda row: row.record.output_stride)
    numbers = table.values(number_of_seeds)
    epochs, batch = setting.get("trainer.max_epochs"), setting.get("data.batch_size")
    parts = [
        data_name(table.rows[0].first),
        record.input_size and f"input {size_text(record.input_size)}",
        epochs and f"{epochs} epochs",
        batch and f"batch {batch}",
        len(factors) == 1 and factors[0] not in (1, None) and f"width {general(factors[0])}",
        len(steps) == 1 and steps[0] and f"output stride {steps[0]}",
        len(numbers) == 1
        and numbers[0]
        and (f"n={numbers[0]} seeds" if numbers[0] > 1 else "1 seed"),
    ]
    return ", ".join(part for part in parts if part)


def data_name(run: Run) -> str:
    """The name of the data set, with the folder's name for ``data=folder``."""
    name = run.record.data.name or "unknown data"
    root = run.record.configured("data.root")
    return f"{name} {Path(str(root)).name}" if name == "folder" and root else name


def scope(options: Options) -> str:
    """The filter that the user set, or nothing."""
    parts = [f"{name}={','.join(values)}" for name, values in options.where.items()]
    return "only runs with " + " ".join(parts) if parts else ""


def distinction(table: Table) -> str:
    """Settings that set the table apart; nothing if it is the only one."""
    if not table.distinction:
        return ""
    # A reader only needs to see that two fingerprints differ.
    pairs = [
        f"{key}={value[:8] if key == 'data.fingerprint' else value}"
        for key, value in table.distinction
    ]
    return "not comparable with the other tables, here: " + ", ".join(pairs)


def verdicts(table: Table) -> list[str]:
    """The verdict on each row that has a reference, see ``RULE``."""
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
        lines.append(f"{label} against {other}{_residual_words(row)}: {pair.words}")
    return lines


def warnings(table: Table) -> list[str]:
    """Threats to a fair comparison."""
    lines: list[str] = []
    untested: dict[str, list[str]] = {}  # rows with their seeds, by reason
    for row in table.rows:
        label = row_label(table, row)
        lines += (f"{label}: {threat}" for threat in _threats(table, row))
        seeds: dict[str, list[int]] = {}
        for seed, reason in row.paired.no_mcnemar if row.paired else ():
            seeds.setdefault(reason, []).append(seed)
        for reason, numbers in seeds.items():
            untested.setdefault(reason, []).append(f"{label}, seed {_listed(numbers)}")
    for reason, labels in untested.items():
        lines.append(f"no McNemar test ({reason}): {'; '.join(labels)}")
    apart = [
        row_label(table, row)
        for row in table.rows
        if not (row.is_reference or row.measured_in_turns)
        and any(row.latency_ratio(conditions) for conditions in table.conditions)
    ]
    if apart:
        lines.append(
            "latency: not measured in turns with the reference but at another time; the ratio "
            f"includes other load of the machine: {', '.join(apart)}"
        )
    for conditions in table.conditions:
        unsteady = [row_label(table, r) for r in table.rows if r.stable(conditions) is False]
        if unsteady:
            name = conditions_name(table, conditions)
            lines.append(f"latency {name}: the times were not steady: {', '.join(unsteady)}")
    return lines


def _threats(table: Table, row: Row) -> Iterator[str]:
    """Threats to a fair comparison of one row."""
    reference = row.reference
    if row.match and abs(row.match.residual) > RESIDUAL:
        yield (
            f"the budgets are not equal: {match_text(row.match)} of {row.match.to}'s; widths are "
            "rounded to 8 channels"
        )
    if row.ambiguous:
        names = "; ".join(row_label(table, other) for other in row.ambiguous)
        yield f"several rows could be its reference, so that it has none: {names}"
    if reference and not row.is_reference and row.accuracy and reference.accuracy:
        own, other = ({run.record.seed for run in one.runs} for one in (row, reference))
        left_out = [seed for seed in own ^ other if seed is not None]
        if row.paired is None:
            yield "no seed in common with its reference: not compared"
        elif left_out:
            yield f"diff is without seed {_listed(sorted(left_out))}, which only one has"


def legend(table: Table) -> list[str]:
    """Sentences without which the numbers can be misread."""
    return list(_legend(table))


def _legend(table: Table) -> Iterator[str]:
    size = size_text(table.rows[0].record.input_size)
    yield from _data_legend(table)
    if any(row.paired for row in table.rows):
        yield RULE
    yield _accuracy_legend(table)
    yield from _checkpoint_legend(table)
    yield from _reference_legend(table)
    if any(row.match for row in table.rows):
        yield (
            "matched: the width was solved for, to come as close to the cost of the reference as "
            "steps of 8 channels allow; the rest in per cent of that cost"
        )
    yield from teacher_legend(table)
    yield from _balance_legend(table)
    yield from _recipe_legend(table)
    yield from _kept_apart(table)
    if any(row.first.conv == REFERENCE for row in table.rows):
        yield (
            f"{REFERENCE}: one dense k x k convolution replaces depthwise + pointwise; the norm "
            "and activation between the two disappear; a squeeze-and-excite gate acts on its input"
        )
    macs = "1 MAC = one multiply-add = 2 FLOPs; convolutions and linear layers are counted"
    yield f"{macs}, for one {size} image" if size else macs
    yield from _latency_legend(table)
    machines = sorted({run.machine for row in table.rows for run in row.runs})
    if len(machines) > 1:
        names = "; ".join(name or "not recorded" for name in machines)
        yield f"train s: no mean and no ratio across different machines: {names}"
    elif machines[0]:
        yield f"train s: training with validation; {machines[0]}"
    yield "units: per cent and points here, fractions of 1 in comparison.csv and comparison.json"


def statistics_legend(table: Table) -> list[str]:
    """Sentences without which the statistics can be misread."""
    pairs = [row.paired for row in table.rows if row.paired]
    lines = [
        f"{row_label(table, row)}: {_mcnemar_words(row.paired)}, about these networks only"
        for row in table.rows
        if row.paired and row.paired.n > 1 and row.paired.mcnemar
    ]
    if fewest := min((pair.n for pair in pairs if pair.bootstrap), default=0):
        few = f"with n={fewest} there are few resamples: coarse and too narrow; "
        lines.append(
            f"bootstrap: BCa over the seeds; {few if fewest < COARSE else ''}"
            "the verdict is by Student's t"
        )
    if len([pair for pair in pairs if pair.t]) > 1:
        lines.append(
            f"each of the {len(pairs)} intervals is a 95 % interval by itself; of many, one in "
            "twenty misses by chance"
        )
    if any(pair.mcnemar for pair in pairs):
        lines.append(
            "McNemar: exact test on the test images that only one of two networks of a seed "
            "classifies correctly; it is about these two networks, the interval about training "
            "again; the seeds share their images, so their p-values are not combined"
        )
    return lines


def undrawn(comparison: Comparison) -> list[str]:
    """Lines about tables and rows that figures leave out."""
    number = len(comparison.tables)
    lines = list(dict.fromkeys(filter(None, map(left_out, comparison.tables[:MOST_TABLES]))))
    if number > MOST_TABLES:
        lines.append(
            f"figures are of the first {MOST_TABLES} of {number} tables; for another one, compare "
            "the folders of its runs alone"
        )
    return lines


def remarks(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Titles and lines about everything that was found but is in no table."""
    unfinished = [
        ": ".join(filter(None, (run.name, run.record.status, run.error)))
        for run in comparison.unfinished
    ]
    repeated = "Runs that were repeated later with the same seed (the later one is in the table)"
    groups = {
        "Not drawn": undrawn(comparison),
        "Runs without a result": unfinished,
        repeated: [str(run.folder) for run in comparison.repeated],
        "Files that could not be read": [f"{p.path}: {p.reason}" for p in comparison.problems],
    }
    return [(title, lines) for title, lines in groups.items() if lines]


def size_text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _residual_words(row: Row) -> str:
    """The residual of a missed budget, such as ``, with 15 % more MACs``."""
    if row.match is None or abs(row.match.residual) <= RESIDUAL:
        return ""
    quantity, residual = row.match.quantity, row.match.residual
    fewer = "less" if quantity == "latency" else "fewer"
    how = "more" if residual > 0 else fewer
    return f", with {100 * abs(residual):.0f} % {how} {QUANTITIES.get(quantity, quantity)}"


def _mcnemar_words(paired: Paired) -> str:
    """The tests of all seeds, such as ``McNemar p < 0.05 in 3 of 3 seeds (3 against)``."""
    found = [test.outcome for test in paired.mcnemar if test.p_value < SIGNIFICANT]
    ways = {"for": found.count("better"), "against": found.count("worse")}
    told = ", ".join(f"{number} {way}" for way, number in ways.items() if number)
    text = f"McNemar p < {SIGNIFICANT} in {len(found)} of {len(paired.mcnemar)} seeds"
    return f"{text} ({told})" if told else text


def _accuracy_legend(table: Table) -> str:
    numbers = table.values(number_of_seeds)
    if max(numbers) == 0:
        return "no test accuracy was measured"
    if max(numbers) == 1:
        return "test accuracy: one seed, which gives no interval; differences may be chance"
    line = (
        f"test accuracy: mean {PLUS_MINUS} half the width of its 95 % confidence interval "
        "(Student's t) over n runs, one per seed; an interval that would leave 0 to 100 is cut off "
        "there and written [low, high], and one of a difference at -100 and 100"
    )
    return line + ("; n=1 gives no interval" if min(numbers) < 2 else "")


def _data_legend(table: Table) -> Iterator[str]:
    data = table.rows[0].record.data
    if data.splits:
        images = ", ".join(f"{number:,} {name}" for name, number in data.splits.items())
        subset = " of a subset" if data.subset else ""
        yield f"data: {data_name(table.rows[0].first)}, {images} images{subset}"


def _checkpoint_legend(table: Table) -> Iterator[str]:
    """The epochs that were tested, and whether the networks were still learning at the end."""
    tested = [run.record for row in table.rows for run in row.runs if run.accuracy is not None]
    ends = [(record.best_epoch, record.epochs) for record in tested if record.epochs]
    best = sorted({epoch for epoch, _ in ends if epoch})
    if best:
        late = sum(epoch == last for epoch, last in ends)
        epochs = f"epoch {best[0]}" if len(best) == 1 else f"epochs {best[0]} to {best[-1]}"
        line = f"tested: the checkpoint with the best validation, from {epochs}"
        if late:
            line += (
                f"; it was the last epoch in {late} of {sum(bool(epoch) for epoch, _ in ends)} "
                "runs: accuracy may still have been rising, and more epochs may change the order"
            )
        yield line
    elif ends:
        yield "tested: the state after the last epoch; there was no validation"


def _reference_legend(table: Table) -> Iterator[str]:
    alone = [row for row in table.rows if row.reference is None and not row.ambiguous]
    reference = table.options.reference
    whose = "" if "/" in reference else " of the same model, width and output stride"
    if any(row.reference and not row.match for row in table.rows):
        yield (
            f"diff (points of accuracy, mean over the common seeds, 95 % interval) and ratio: "
            f"against conv={reference}{whose}"
        )
    if any(row.reference and row.match for row in table.rows):
        yield "diff and ratio of a matched row: against the network that set its budget"
    if alone:
        names = ", ".join(dict.fromkeys(_needs(row, reference) for row in alone))
        yield f"no diff and no ratio for {names}: no such run has finished with this recipe"


def _needs(row: Row, reference: str) -> str:
    model, width, stride = row.network
    if "/" in reference and not row.match:
        return f"{row.first.model} (needs {reference})"
    conv = row.match.to if row.match else reference
    return f"{model} (needs conv={conv}, width {general(width)}, output stride {general(stride)})"


def _recipe_legend(table: Table) -> Iterator[str]:
    run = table.rows[0].first
    if not run.searched:
        known = {key: table.setting.get(f"recipe.{key}") for key in _RECIPE}
        values = ", ".join(f"{key} {value}" for key, value in known.items() if value)
        yield (
            f"one recipe for all{f' ({values})' if values else ''}, tuned for no variant; a recipe "
            "can favour one of them by points (hparams_search=optuna)"
        )
        return
    names = " and ".join(_RECIPE.get(key, key) for key, _ in run.searched)
    trials = table.setting.get("hparams_search.trials", "an unknown number of")
    yield f"{names} searched per variant: {trials} trials each, on validation"
    for row in table.rows:
        best = ", ".join(f"{_RECIPE.get(key, key)} {v:g}" for key, v in row.first.searched)
        yield f"found for {row_label(table, row)}: {best}"


def _kept_apart(table: Table) -> Iterator[str]:
    """A line about rows that a user's ``by`` does not tell apart."""
    by = table.options.by
    groups = Counter(tuple(table.key(name, row) for name in by) for row in table.rows)
    number = sum(rows for rows in groups.values() if rows > 1)
    if number and by != Options().by:
        yield (
            f"{number} rows are equal in {', '.join(by)} but differ in something else: kept apart, "
            "not averaged"
        )


def _balance_legend(table: Table) -> Iterator[str]:
    found = [r.per_class for row in table.rows if (r := row.record).per_class]
    if unequal := [one for one in found if one and one.unequal]:
        counts = [number for number in unequal[0].images if number]
        yield (
            f"balanced acc: the mean over the classes, which have {min(counts):,} to "
            f"{max(counts):,} test images; diff and verdict are of accuracy"
        )


def _latency_legend(table: Table) -> Iterator[str]:
    if table.conditions:
        yield f"p50: median time of one batch; {table.conditions[0]}"
    if len(table.conditions) > 1:
        yield "latencies under different conditions have no ratio to each other"
    if any(row.stable(c) is not None for row in table.rows for c in table.conditions):
        yield (
            "steady: the median moved by less than 5 % while measuring, and p10 and p90 are less "
            "than 30 % apart"
        )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
