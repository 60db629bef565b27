"""A sweep: its runs one after the other, measured together at the end, and compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from dwsep_zoo.errors import UserError, say
from dwsep_zoo.report import compare
from dwsep_zoo.report.tensorboard import write_scalars
from dwsep_zoo.schema.measures import LATENCY
from dwsep_zoo.schema.record import (
    FILE_NAME,
    RecordFile,
    RunRecord,
    now,
    read_record,
    update_record,
)
from dwsep_zoo.schema.settings import Settings, parse_settings
from dwsep_zoo.training import train
from dwsep_zoo.zoo import create_model


class Sweep:
    """The runs of one command with ``-m``.

    Args:
        folder: of the sweep.
        arguments: its command line, for the records.
    """

    def __init__(self, folder: Path, arguments: list[str]):
        self.folder = folder
        self.arguments = arguments
        self.made: dict[str, Path] = {}  # folders by everything that determines a run
        self.failed = 0

    def run_job(self, cfg: DictConfig) -> None:
        """Train one run; if it fails, the sweep continues."""
        sys.argv[1:] = self.arguments
        config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        folder = Path(config["paths"]["output_dir"])
        try:
            settings = parse_settings(config)
            if twin := self._twin(settings, folder):
                print(f"\n{folder.name} would be the same run as {twin.name}: not made again")
                return
            train(settings)
        except Exception as error:
            self._fail(config, folder, error)

    def finish(self) -> bool:
        """Measure the networks in turns and write the report; whether all went well."""
        # Each step is tried even if the one before it failed.
        try:
            measure_together(self.folder)
        except Exception as error:
            self.failed += 1
            say(error, "measuring the networks in turns: ")
        try:
            comparison = compare([self.folder], self.folder)
        except Exception as error:
            self.failed += 1
            say(error, f"the report (dwsep compare {self.folder} makes it again): ")
        else:
            self.failed += len(comparison.unfinished) + len(comparison.problems)
        return not self.failed

    def _fail(self, config: dict[str, Any], folder: Path, error: Exception) -> None:
        """Name the error and record it, unless the run has done so."""
        recorded = (folder / FILE_NAME).is_file()
        if isinstance(error, UserError) or not recorded:
            say(error)
        if not recorded:  # so that no failure is missing from the report
            folder.mkdir(parents=True, exist_ok=True)
            text = " ".join(str(error).split()) or type(error).__name__
            RecordFile(
                folder,
                model=str(config["model"]["name"]),
                conv=str(config["conv"]["name"]),
                name=folder.name,
                config=config,
                status="failed",
                error=text,
            )

    def _twin(self, settings: Settings, folder: Path) -> Path | None:
        """An earlier run that is the same: ``conv=standard`` matched to ``standard``."""
        values = settings.model_dump(mode="json", exclude={"paths", "match", "to"})
        match = settings.match if settings.conv.name != settings.to else None
        key = json.dumps([values, match, settings.to if match else None], sort_keys=True)
        earlier = self.made.setdefault(key, folder)
        return None if earlier == folder else earlier


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
        if len(networks) == 1:
            continue
        first = records[next(iter(networks.values()))[0]]
        settings = parse_settings(first.config)
        begun = now()
        print(f"\nmeasuring the {len(networks)} networks in turns")
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


def _replace_in_tensorboard(folder: Path, record: RunRecord) -> None:
    """Let HPARAMS show the common latency of a run, not the one at its own end."""
    latency = LATENCY.value(record)
    if latency is not None and any(folder.glob("events.out.tfevents.*")):
        write_scalars(folder, {LATENCY.tag: latency})
