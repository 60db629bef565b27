"""The plan of a sweep, ``sweep.json``: written when it begins, read to go on with it.

It holds the composed settings of every run, so that what goes on is what was begun, whatever has
happened to the YAML files since.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field

from dwsep_zoo.errors import UserError
from dwsep_zoo.files import atomic_write
from dwsep_zoo.schema.parse import parse
from dwsep_zoo.schema.part import Json, Part
from dwsep_zoo.schema.record import SCHEMA, RunRecord
from dwsep_zoo.schema.upgrade import upgrade_config

FILE_NAME = "sweep.json"


class Job(Part):
    """One run of a sweep.

    Attributes:
        folder: its name in the sweep's folder.
        overrides: that differ from the YAML files.
        config: the settings of the run, without ``paths.output_dir``.
    """

    folder: str
    overrides: tuple[str, ...]
    config: Json

    def config_in(self, sweep: Path) -> Json:
        """The settings, of a run in the folder of a sweep."""
        paths = self.config.get("paths")
        place = {"output_dir": str(sweep / self.folder)}
        return {**self.config, "paths": {**(paths if isinstance(paths, dict) else {}), **place}}

    def record(self, sweep: Path) -> RunRecord:
        """The record of a run that has none."""
        model, conv = (self.config[group] for group in ("model", "conv"))
        values = {"status": "missing", "error": "it has not begun", "config": self.config_in(sweep)}
        return parse(
            RunRecord,
            {
                **values,
                "name": self.folder,
                "model": model["name"] if isinstance(model, dict) else str(model),
                "conv": conv["name"] if isinstance(conv, dict) else str(conv),
                "seed": self.config["seed"],
            },
        )


class SweepPlan(Part):
    """The runs of a sweep in order.

    Attributes:
        version: of the settings, as in ``result.json``.
        command: words of the command line, behind the program's name.
    """

    version: int = Field(default=SCHEMA, alias="schema")
    command: tuple[str, ...]
    jobs: tuple[Job, ...]


def read_plan(folder: Path) -> SweepPlan:
    """Read the plan of the sweep in a folder.

    Raises:
        UserError: if there is none, or it is damaged or newer than this version.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise UserError(
            f"{folder} is not the folder of a sweep (it has no {FILE_NAME}); one of an earlier "
            "version goes on by its command with hydra.sweep.dir=FOLDER"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("schema") not in range(1, SCHEMA + 1):
            raise UserError(
                f"its schema is {values.get('schema')!r}; this version reads up to {SCHEMA}"
            )
        plan = parse(SweepPlan, values)
    except (OSError, ValueError, RecursionError) as error:  # a UserError is a ValueError
        raise UserError(f"cannot read {file}: {error}") from error
    configs = [upgrade_config(job.config, plan.version) for job in plan.jobs]
    jobs = zip(plan.jobs, configs, strict=True)
    upgraded = tuple(job.model_copy(update={"config": config}) for job, config in jobs)
    return plan.model_copy(update={"jobs": upgraded})


def write_plan(folder: Path, plan: SweepPlan) -> None:
    """Write the plan of a sweep into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / FILE_NAME, json.dumps(plan.plain(), indent=1) + "\n")
