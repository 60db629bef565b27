"""``train.py`` and ``dwsep train``: one run, a sweep, or the continuation of a run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from dwsep_zoo.config import (
    OUTPUT_DIR,
    Composed,
    Line,
    compose_line,
    groups_with_names,
    hydra_main,
    quoted,
    read_line,
    values_of,
)
from dwsep_zoo.errors import UserError, choose, say
from dwsep_zoo.files import check_writable
from dwsep_zoo.schema.help import help_lines
from dwsep_zoo.schema.record import FILE_NAME
from dwsep_zoo.schema.settings import Settings
from dwsep_zoo.schema.texts import checked_place

LOG_DIR = "paths.log_dir"
HYDRAS_OWN = ("cfg", "info", "hydra_help", "version")
INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
USAGE = """\
usage: {program} [key=value | group=name ...] [-m] [--config-dir DIR]

  {program} model=mobilenet_v1                      # on digits, a minute on two cores
  {program} model=mobilenet_v1 conv=standard        # swap the convolution
  {program} -m conv=standard,depthwise_separable seed=0,1,2    # side by side
  {program} model=mobilenet_v2 data=folder data.root=pictures/
  {program} resume=last                             # continue the last run

-m              train every combination of a,b values
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
        elif (resume := line.value("resume")) is not None:
            _resume(line, checked_place("resume", resume), multirun=options.multirun, prefix=prefix)
        else:
            _train(line, arguments, multirun=options.multirun, prefix=prefix)
    except UserError as error:
        say(error)
        sys.exit(2)


def _train(line: Line, arguments: list[str], *, multirun: bool, prefix: Sequence[str]) -> None:
    composed = compose_line(line, line.first)
    settings = composed.settings
    multirun = multirun or composed.multirun
    _check_single(line, multirun=multirun)
    check_writable(LOG_DIR, Path(settings.paths.log_dir))
    if not multirun:
        _run_once(settings, [*prefix, *arguments], line.first)
        return
    _check_sweep(line, composed)
    from dwsep_zoo.report.statistics import say_detectable
    from dwsep_zoo.sweep import Sweep

    if not composed.multirun:  # else YAML has the seeds
        seeds = [v for o in line.overrides if o.key_or_group == "seed" for v in values_of(o)]
        print(say_detectable(len(set(seeds)) or 1))
    sweep = Sweep(composed.sweep_dir, [*prefix, *arguments])
    folder = f"hydra.sweep.dir={quoted(composed.sweep_dir)}"
    texts = [o.input_line or "" for o in line.overrides]  # in one piece: argparse wants that
    place = ["--config-dir", line.own] if line.own else []
    hydra_main(sweep.run_job, ["-m", *place, *texts, folder])
    if not sweep.finish():
        sys.exit(1)


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


def _check_sweep(line: Line, composed: Composed) -> None:
    """Check every value of a sweep before the first run of it is made."""
    from dwsep_zoo.training import check

    if line.value(OUTPUT_DIR) is not None:
        raise UserError(f"with -m each run has a folder of its own; leave {OUTPUT_DIR}= out")
    check_writable("hydra.sweep.dir", composed.sweep_dir)
    for overrides in (line.first, *line.further()):
        settings = compose_line(line, overrides).settings
        if settings.trainer.strategy == "ddp":
            raise UserError("trainer=ddp starts processes of its own and cannot run inside -m")
        check(settings)


def _resume(line: Line, run: str, *, multirun: bool, prefix: Sequence[str]) -> None:
    if multirun or line.swept:
        raise UserError("resume= goes on with one run; it cannot be used with -m")
    folder = Path(run)
    if run == "last":
        places = Line(tuple(o for o in line.overrides if o.key_or_group == LOG_DIR), line.own)
        folder = _last_run(Path(compose_line(places, places.first).settings.paths.log_dir))
    from dwsep_zoo.training import resume_settings

    changes = {key: line.value(key) for key in line.keys if key != "resume"}
    settings = resume_settings(folder, changes)
    texts = [o.input_line or "" for o in line.overrides if o.key_or_group != "resume"]
    _run_once(settings, [*prefix, *texts, f"resume={quoted(folder)}"])


def _last_run(log_dir: Path) -> Path:
    records = list(log_dir.glob(f"**/{FILE_NAME}"))
    if not records:
        raise UserError(f"resume=last: there is no run below {log_dir}")
    return max(records, key=lambda file: file.stat().st_mtime).parent


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
    if overrides is not None:  # where Hydra's users look for them
        kept = {"config": settings.plain(), "overrides": list(overrides)}
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        for name, values in kept.items():
            text = yaml.safe_dump(values, sort_keys=False)
            (folder / ".hydra" / f"{name}.yaml").write_text(text, encoding="utf-8")
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
