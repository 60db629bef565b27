"""Measuring the networks of a sweep when all of them are trained."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch

from dwsep_zoo.errors import UserError
from dwsep_zoo.report.tensorboard import write_scalars
from dwsep_zoo.schema.measures import LATENCY
from dwsep_zoo.schema.record import FILE_NAME, RunRecord, now, read_record, update_record
from dwsep_zoo.schema.settings import parse_settings
from dwsep_zoo.zoo import create_model


def measure_together(folder: Path) -> None:
    """Measure the networks of a sweep once more, in turns, and put that into their records.

    The measurements at the end of each run are minutes or hours apart, on a machine that may have
    been doing other things. ``in_turns`` of a record is the time of the common one.

    Args:
        folder: of the runs; unfinished runs and damaged records are left as they are.
    """
    from dwsep_zoo.training.profile import profile

    records: dict[Path, RunRecord] = {}
    groups: dict[str, dict[str, list[Path]]] = {}
    for file in sorted(folder.glob(f"*/{FILE_NAME}")):
        try:
            record = read_record(file)
            settings = parse_settings(record.config)
        except (OSError, UserError):
            continue  # the report names it
        if record.status != "finished":
            continue
        same = json.dumps([record.input_size, settings.profile.plain(), settings.data.images])
        records[file] = record
        groups.setdefault(same, {}).setdefault(json.dumps(record.network), []).append(file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for networks in groups.values():
        runs = [records[file] for files in networks.values() for file in files]
        if _are_measured(runs) or (len(networks) == 1 and not _overlapped(runs)):
            continue
        first = records[next(iter(networks.values()))[0]]
        settings = parse_settings(first.config)
        begun = now()
        named = f"{len(networks)} networks in turns" if len(networks) > 1 else "network again"
        print(f"\nmeasuring the {named}")
        models = {network: create_model(**json.loads(network)).eval() for network in networks}
        costs = profile(
            models,
            first.input_size,
            settings.profile,
            device,
            train_batch_size=settings.data.images,
        )
        for files, cost in zip(networks.values(), costs, strict=True):
            for file in files:
                update_record(
                    file, latency=cost["latency"], roofline=cost["roofline"], in_turns=begun
                )
                _replace_in_tensorboard(file.parent, read_record(file))


def _are_measured(runs: Iterable[RunRecord]) -> bool:
    """Whether the last measurement was of all of them: a run that goes on leaves it."""
    times = {run.in_turns for run in runs}
    return len(times) == 1 and None not in times


def _overlapped(runs: Iterable[RunRecord]) -> bool:
    """Whether one began before another was done, whose measurements it may have disturbed."""
    times = sorted((run.started or "", run.finished or "") for run in runs)
    return any(later[0] < earlier[1] for earlier, later in pairwise(times))


def _replace_in_tensorboard(folder: Path, record: RunRecord) -> None:
    """Let HPARAMS show the common latency of a run, not the one at its own end."""
    latency = LATENCY.value(record)
    if latency is not None and any(folder.glob("events.out.tfevents.*")):
        write_scalars(folder, {LATENCY.tag: latency})
