"""``train.py`` and ``dwsep train``: one run, a sweep, or the continuation of a run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dwsep_zoo.config import (
    OUTPUT_DIR,
    Composed,
    Line,
    compose_jobs,
    compose_line,
    groups_with_names,
    hydra_main,
    quoted,
    read_line,
)
from dwsep_zoo.errors import UserError, choose, say
from dwsep_zoo.files import check_writable
from dwsep_zoo.schema.help import help_lines
from dwsep_zoo.schema.record import FILE_NAME
from dwsep_zoo.schema.settings import Settings, parse_settings
from dwsep_zoo.schema.sweep import FILE_NAME as PLAN
from dwsep_zoo.schema.sweep import Job, write_plan
from dwsep_zoo.schema.texts import checked_place
from dwsep_zoo.terminal import escape_names

LOG_DIR = "paths.log_dir"
AUTO = "auto"
"""``resume=auto``: go on if the run's folder has something to go on with, else begin."""
HYDRAS_OWN = ("cfg", "info", "hydra_help", "version")
INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
USAGE = """\
usage: {program} [key=value | group=name ...] [-m] [--config-dir DIR]

  {program} model=mobilenet_v1                      # on digits, a minute on two cores
  {program} model=mobilenet_v1 conv=standard        # swap the convolution
  {program} -m conv=standard,depthwise_separable seed=0,1,2    # side by side
  {program} model=mobilenet_v2 data=folder data.root=pictures/
  {program} resume=last                             # continue the last run
  {program} resume=SWEEP                            # continue a sweep, from its folder
  {program} --retry-failed SWEEP                    # only its runs that failed or were cut off

-m              train every combination of a,b values
--jobs N        this many runs of a sweep at once, each with its part of the cores
--config-dir    a folder of your own YAML files
--cfg job       print the configuration instead of training
"""


def run(arguments: list[str]) -> None:
    """``dwsep train``."""
    # Lightning starts the processes of trainer=ddp with this same command line.
    run_train(arguments, prefix=["train"])


def run_train(argv: Sequence[str] | None = None, *, prefix: Sequence[str] = ()) -> None:
    """``train.py``: one run, or with ``-m`` a sweep of runs that ends with their comparison.

    Args:
        argv: the command line's arguments; ``None``: ``sys.argv``'s.
        prefix: words before them that a process started with the same command line needs.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    escape_names()
    try:
        options = _parser().parse_intermixed_args(arguments)
        line = read_line(options.overrides, options.config_dir)
        if options.help:
            _print_help(line, " ".join([Path(sys.argv[0]).name, *prefix]))
        elif options.shell_completion:
            _check_completion(line)
            hydra_main(lambda cfg: None, arguments)
        elif any(getattr(options, name) for name in HYDRAS_OWN):
            _check_shown(line, options)
            hydra_main(lambda cfg: None, arguments)
        elif options.retry_failed is not None:
            _retry(line, options)
        elif line.value("resume") not in (None, AUTO):
            _resume(line, options, prefix)
        else:
            _train(line, options, arguments, prefix)
    except UserError as error:
        say(error)
        sys.exit(2)


def _train(
    line: Line, options: argparse.Namespace, arguments: list[str], prefix: Sequence[str]
) -> None:
    auto = line.value("resume") == AUTO
    line = _without_resume(line)
    composed = compose_line(line, line.first)
    settings: Settings | None = composed.settings
    multirun = options.multirun or composed.multirun
    _check_single(line, multirun=multirun)
    check_writable(LOG_DIR, Path(composed.settings.paths.log_dir))
    if multirun:
        if auto:
            raise UserError("resume=auto is for one run; a sweep goes on in hydra.sweep.dir=FOLDER")
        _sweep(line, composed, options.jobs, [*prefix, *arguments])
        return
    _check_jobs(None, options.jobs)
    if auto or "RANK" in os.environ or "SLURM_PROCID" in os.environ:
        _check_place(line)
    if auto:
        from dwsep_zoo.training import continued

        settings = continued(composed.settings)
    if settings is None:
        print(f"{composed.settings.paths.output_dir}: this run is finished")
        return
    _run_once(settings, [*prefix, *arguments], line.first)


def _without_resume(line: Line) -> Line:
    return Line(tuple(o for o in line.overrides if o.key_or_group != "resume"), line.own)


def _check_place(line: Line) -> None:
    """Raises UserError for a folder that each start of the command would name anew."""
    if not {OUTPUT_DIR, "hydra.run.dir"} & {*line.keys}:
        raise UserError(
            f"resume=auto, torchrun and srun need a fixed folder of the run: {OUTPUT_DIR}=FOLDER"
        )


def _sweep(line: Line, composed: Composed, jobs: int | None, words: list[str]) -> None:
    """Begin a sweep, or go on with it in its folder."""
    folder = composed.sweep_dir
    _check_sweep(line, folder)
    _check_jobs(folder, jobs)
    from dwsep_zoo.report.statistics import say_detectable
    from dwsep_zoo.sweep import check_folder, plan_of

    plan = plan_of(words, compose_jobs(line, composed.params))
    check_folder(folder, plan)
    _check_values(folder, plan.jobs)
    if not (folder / PLAN).exists():
        write_plan(folder, plan)
    print(say_detectable(len({job.config["seed"] for job in plan.jobs})))
    _work(folder, jobs)


def _work(folder: Path, jobs: int | None, *, retry: bool = False) -> None:
    """Make the runs of a sweep that are still to be made, and the report."""
    from dwsep_zoo.sweep import AGAIN, OPEN, Sweep, work_together

    _check_jobs(folder, jobs)
    sweep, states = Sweep(folder), AGAIN if retry else OPEN
    if jobs is None or jobs == 1:
        sweep.work(states)
    else:
        work_together(folder, jobs, states)
    if not sweep.finish():
        sys.exit(1)


def _check_jobs(sweep: Path | None, jobs: int | None) -> None:
    if jobs is None:
        return
    if sweep is None:
        raise UserError("--jobs is for a sweep: with -m, resume=SWEEP or --retry-failed SWEEP")
    from dwsep_zoo.sweep import check_jobs

    check_jobs(jobs)


def _retry(line: Line, options: argparse.Namespace) -> None:
    if line.overrides or options.multirun:
        raise UserError("--retry-failed repeats runs as they were; it takes no other words")
    _work(Path(checked_place("--retry-failed", options.retry_failed)), options.jobs, retry=True)


def _check_single(line: Line, *, multirun: bool) -> None:
    if line.swept and not multirun:
        text = line.swept[0].input_line
        raise UserError(f"{text} has several values; add -m to train all of them")


def _check_shown(line: Line, options: argparse.Namespace) -> None:
    """Check what Hydra is asked to print."""
    if options.multirun or sum(bool(getattr(options, name)) for name in HYDRAS_OWN) > 1:
        raise UserError(f"of -m, --{', --'.join(HYDRAS_OWN).replace('_', '-')}, use one at a time")
    _check_single(line, multirun=False)
    values: object = compose_line(line, line.first).values
    for name in options.package.split(".") if options.package else ():
        if not isinstance(values, dict) or name not in values:
            raise UserError(f"--package {options.package}: there is no such group")
        values = values[name]


def _check_completion(line: Line) -> None:
    if len(line.keys) != 1 or ("COMP_LINE" not in os.environ and line.keys == ["query"]):
        raise UserError("--shell-completion takes install=bash, fish or zsh, or uninstall=")
    (key,) = line.keys
    choose(key, ("install", "uninstall", "query"), "task of --shell-completion")
    choose(str(line.value(key)), ("bash", "fish", "zsh"), key)


def _check_sweep(line: Line, folder: Path) -> None:
    if line.value(OUTPUT_DIR) is not None:
        raise UserError(f"with -m each run has a folder of its own; leave {OUTPUT_DIR}= out")
    check_writable("hydra.sweep.dir", folder)


def _check_values(folder: Path, jobs: Sequence[Job]) -> None:
    """Check every value of a sweep before the first run of it is made."""
    from dwsep_zoo.training import check, continued
    from dwsep_zoo.training.check import check_in_sweep

    first = jobs[0].overrides
    for job in jobs:
        if sum(one != other for one, other in zip(job.overrides, first, strict=True)) > 1:
            continue  # its values are those of others
        settings = parse_settings(job.config_in(folder))
        check_in_sweep(settings)
        if left := continued(settings):
            check(left)


def _resume(line: Line, options: argparse.Namespace, prefix: Sequence[str]) -> None:
    run = checked_place("resume", line.value("resume"))
    others = _without_resume(line)
    if options.multirun or line.swept:
        raise UserError(
            "resume= goes on with one run or, with its folder alone, a sweep; it cannot be used "
            "with -m"
        )
    folder = Path(run)
    if (folder / PLAN).is_file():
        if others.overrides:
            raise UserError(f"resume={run} goes on with a sweep as it began; leave other words out")
        _work(folder, options.jobs)
        return
    _check_jobs(None, options.jobs)
    if run == "last":
        places = Line(tuple(o for o in line.overrides if o.key_or_group == LOG_DIR), line.own)
        folder = _last_run(Path(compose_line(places, places.first).settings.paths.log_dir))
    from dwsep_zoo.training import resume_settings

    changes = {key: others.value(key) for key in others.keys}
    settings = resume_settings(folder, changes)
    texts = [o.input_line or "" for o in others.overrides]
    _run_once(settings, [*prefix, *texts, f"resume={quoted(folder)}"])


def _last_run(log_dir: Path) -> Path:
    from dwsep_zoo.training.check import LOG_NAME

    found = log_dir.glob(f"**/{FILE_NAME}")
    records = [file for file in found if file.with_name(LOG_NAME).exists()]  # none of dwsep eval
    if not records:
        raise UserError(f"resume=last: there is no run below {log_dir}")
    # Not by the record, to which dwsep add-latency writes too.
    return max(records, key=lambda file: file.with_name(LOG_NAME).stat().st_mtime).parent


def _run_once(
    settings: Settings, arguments: list[str], overrides: Sequence[str] | None = None
) -> None:
    """One run in this process, and with ``trainer=ddp`` in others that have its command line."""
    from dwsep_zoo.training import check, run_plan  # Lightning takes seconds to import

    folder = Path(settings.paths.output_dir)
    sys.argv[1:] = arguments
    if settings.trainer.strategy == "ddp" and not settings.resume:
        sys.argv.append(f"{OUTPUT_DIR}={quoted(folder)}")
    plan = check(settings)
    if overrides is not None:
        from dwsep_zoo.sweep import keep_for_hydra

        keep_for_hydra(settings, overrides)
    try:
        run_plan(plan)
    except UserError:
        raise
    except Exception:
        sys.exit(1)  # the log has it


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    """Hydra's options, those that are of use here."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--package", "-p")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=INFOS)
    parser.add_argument("--jobs", "-j", type=int)
    parser.add_argument("--retry-failed", metavar="SWEEP")
    for flags in (
        ("--help", "-h"),
        ("--multirun", "-m"),
        ("--resolve",),
        ("--hydra-help",),
        ("--version",),
        ("--shell-completion", "-sc"),
    ):
        parser.add_argument(*flags, action="store_true")
    return parser


def _print_help(line: Line, program: str) -> None:
    values = compose_line(line, line.first).values
    names = [f"{group}={' | '.join(found)}" for group, found in groups_with_names().items()]
    print("\n".join([USAGE.format(program=program), *names, "", *help_lines(Settings, values)]))
