"""A sweep: a plan in its folder, whose runs any process makes that finds them not yet made.

Every run's folder is locked by the process that trains in it. So a sweep goes on after anything
that ended it, and several processes can work on it at once, on one machine or on several.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from pydantic import JsonValue

from dwsep_zoo.errors import UserError, say
from dwsep_zoo.files import is_locked, locked
from dwsep_zoo.report import compare
from dwsep_zoo.schema.record import FILE_NAME, SCHEMA, parse_record, read_record, write_record
from dwsep_zoo.schema.settings import Settings, parse_settings
from dwsep_zoo.schema.sweep import FILE_NAME as PLAN
from dwsep_zoo.schema.sweep import Job, SweepPlan, read_plan
from dwsep_zoo.sweep.together import measure_together
from dwsep_zoo.training import continued, train
from dwsep_zoo.training.check import LOG_NAME

CUT_OFF = ("interrupted", "running")  # by now the process that says so has been found to be gone
OPEN = ("missing", "damaged", *CUT_OFF)
AGAIN = ("failed", "damaged", *CUT_OFF)


def plan_of(command: Sequence[str], jobs: Sequence[Job]) -> SweepPlan:
    """Plan a sweep.

    Args:
        command: words of the command line, for the records.
        jobs: its runs; those that would be the same as an earlier one are left out.
    """
    return SweepPlan(schema=SCHEMA, command=tuple(command), jobs=tuple(_without_twins(jobs)))


def check_folder(folder: Path, plan: SweepPlan) -> None:
    """Raises UserError if a folder holds another sweep, or runs that this one would not make."""
    if (folder / PLAN).exists():
        if _runs(read_plan(folder)) != _runs(plan):
            raise UserError(
                f"{folder} holds a sweep of other runs; resume={folder} goes on with it, another "
                "sweep needs another folder"
            )
        return
    for job in plan.jobs:
        if (folder / job.folder / FILE_NAME).exists():  # of an earlier version, without a plan
            continued(parse_settings(job.config_in(folder)))


def _runs(plan: SweepPlan) -> list[tuple[str, object]]:
    return [(job.folder, {**job.config, "paths": None}) for job in plan.jobs]


def _without_twins(jobs: Sequence[Job]) -> list[Job]:
    """Leave out what is the same run as an earlier one: ``conv=standard`` matched to it."""
    made: dict[str, Job] = {}
    for job in jobs:
        conv, match = job.config["conv"], job.config["match"]
        assert isinstance(conv, dict)
        to = job.config["to"] if match and conv["name"] != job.config["to"] else None
        values = {**job.config, "paths": None, "match": to and match, "to": to}
        if not job.config["distill"]["teacher"]:  # type: ignore[index, call-overload]
            values["distill"] = None  # how a teacher would teach
        twin = made.setdefault(json.dumps(values, sort_keys=True), job)
        if twin is not job:
            print(f"{job.folder} would be the same run as {twin.folder}: not made again")
    return list(made.values())


class Sweep:
    """The sweep in a folder.

    Raises:
        UserError: if its plan is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder, self.plan = folder, read_plan(folder)

    def state(self, job: Job) -> str:
        """``missing``, ``at work``, ``damaged``, or the status of a record."""
        folder = self.folder / job.folder
        if is_locked(folder / LOG_NAME):
            return "at work"
        try:
            record = read_record(folder / FILE_NAME)
        except FileNotFoundError:
            return "missing"
        except (OSError, UserError):
            return "damaged"
        here = record.process.host == socket.gethostname()  # where file systems have no locks
        return "at work" if record.status == "running" and here else record.status

    def work(self, states: tuple[str, ...] = OPEN) -> None:
        """Make the runs in these states that no other process has at hand, one after the other.

        Raises:
            SystemExit: with code 130 if the user stopped it.
        """
        number = len(self.plan.jobs)
        for place, job in enumerate(self.plan.jobs, 1):
            if self.state(job) not in states:
                continue
            print(f"\n{place}/{number}  {job.folder}", flush=True)
            try:
                self._make(job)
            except SystemExit:
                print(f"the sweep goes on with: resume={self.folder}", flush=True)
                raise

    def finish(self) -> bool:
        """Measure the networks in turns and write the report; whether all went well.

        While another process is at work, nothing is done: the last one does it.
        """
        if working := sum(self.state(job) == "at work" for job in self.plan.jobs):
            print(f"\n{working} more in other processes; the last of them makes the report")
            return True
        with locked(self.folder / PLAN) as mine:
            return self._finish() if mine else True

    def _finish(self) -> bool:
        failed = 0
        # Each step is tried even if the one before it failed.
        try:
            measure_together(self.folder)
        except Exception as error:
            failed += 1
            say(error, "measuring the networks in turns: ")
        try:
            comparison = compare([self.folder], self.folder)
        except Exception as error:
            failed += 1
            say(error, f"the report (dwsep compare {self.folder} makes it again): ")
        else:
            failed += len(comparison.unfinished) + len(comparison.problems)
        return not failed

    def _make(self, job: Job) -> None:
        """Train one run; if it fails, the sweep continues."""
        sys.argv[1:] = self.plan.command
        try:
            if self.state(job) == "damaged":
                self._renew_record(job)
            settings = continued(parse_settings(job.config_in(self.folder)))
            if settings:
                keep_for_hydra(settings, job.overrides)
                train(settings)
        except Exception as error:
            if self.state(job) not in ("at work", "finished"):  # by another process, meanwhile
                self._fail(job, error)

    def _renew_record(self, job: Job) -> None:
        """Put what the plan knows in the place of a damaged record, which is kept beside it."""
        file = self.folder / job.folder / FILE_NAME
        print(f"{file} is damaged; the run goes on from its last checkpoint, if it has one")
        os.replace(file, file.with_name(f"{FILE_NAME}.damaged"))
        found = {"status": "interrupted", "error": "its record was damaged"}
        write_record(file, job.record(self.folder).model_copy(update=found))

    def _fail(self, job: Job, error: Exception) -> None:
        """Name the error and record it, unless the run has done so."""
        folder = self.folder / job.folder
        recorded = (folder / FILE_NAME).is_file()
        if isinstance(error, UserError) or not recorded:
            say(error)
        if not recorded:  # so that no failure is missing from the report
            folder.mkdir(parents=True, exist_ok=True)
            text = " ".join(str(error).split()) or type(error).__name__
            values: dict[str, JsonValue] = {
                **job.record(self.folder).plain(),
                **{"status": "failed", "error": text},
            }
            write_record(folder / FILE_NAME, parse_record(values))


def keep_for_hydra(settings: Settings, overrides: Iterable[str]) -> None:
    """Write ``.hydra/``, where Hydra's users look for settings and overrides."""
    folder = Path(settings.paths.output_dir, ".hydra")
    folder.mkdir(parents=True, exist_ok=True)
    kept = {"config": settings.plain(), "overrides": list(overrides)}
    for name, values in kept.items():
        text = yaml.safe_dump(values, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
