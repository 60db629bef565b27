"""``compare``: all runs below some folders, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dwsep_zoo.errors import UserError
from dwsep_zoo.report import render
from dwsep_zoo.report.results import Problem, Run, load_results
from dwsep_zoo.report.table import Table, make_tables
from dwsep_zoo.terminal import stdout_console

if TYPE_CHECKING:
    from rich.console import Console

LOGS = Path("logs")


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found and wrote.

    Attributes:
        tables: one for each set of runs that may be compared with each other.
        unfinished: runs that failed, were interrupted or are running.
        repeated: finished runs that a later run with the same seed replaces.
        problems: damaged files.
        folder: where the files are.
        files: ``comparison.md``, ``comparison.csv`` and a picture of each table.
    """

    tables: tuple[Table, ...]
    unfinished: tuple[Run, ...]
    repeated: tuple[Run, ...]
    problems: tuple[Problem, ...]
    folder: Path
    files: tuple[Path, ...]


def compare(
    paths: Iterable[Path | str],
    out_dir: Path | str | None = None,
    console: Console | None = None,
) -> Comparison:
    """Print a table of the runs below ``paths`` and write it as markdown, CSV, PNG and TensorBoard.

    Args:
        paths: folders of runs, folders of such folders, or ``result.json`` files.
        out_dir: where to write; ``None``: the folder itself if ``paths`` is the folder of one
            multirun, else ``logs/compare/<date_time>``.
        console: where to print; ``None``: standard output.

    Raises:
        UserError: if there is no run, or the folder cannot be written.
    """
    sources = [Path(path) for path in paths]
    runs, problems = load_results(sources)
    tables, repeated = make_tables(run for run in runs if run.status == "finished")
    unfinished = [run for run in runs if run.status != "finished"]
    folder = Path(out_dir) if out_dir else _default_folder(sources)
    text = render.markdown(tables, unfinished=unfinished, repeated=repeated, problems=problems)
    try:
        files = _write(folder, tables, text)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}") from error
    comparison = Comparison(
        tables=tuple(tables),
        unfinished=tuple(unfinished),
        repeated=tuple(repeated),
        problems=tuple(problems),
        folder=folder,
        files=tuple(files),
    )
    _print(comparison, console or stdout_console())
    return comparison


def _default_folder(paths: Sequence[Path]) -> Path:
    # Hydra writes multirun.yaml into the folder of a sweep.
    if len(paths) == 1 and (paths[0] / "multirun.yaml").is_file():
        return paths[0]
    return LOGS / "compare" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")


def _write(folder: Path, tables: Sequence[Table], text: str) -> list[Path]:
    from dwsep_zoo.report.figure import figure, pixels
    from dwsep_zoo.report.tensorboard import write_comparison

    folder.mkdir(parents=True, exist_ok=True)
    texts = {"comparison.md": text, "comparison.csv": render.csv_text(tables)}
    for name, content in texts.items():
        (folder / name).write_text(content, encoding="utf-8")
    figures = [figure(table) for table in tables]
    files = [folder / name for name in texts]
    for number, picture in enumerate(figures, 1):
        files.append(folder / f"comparison{number if number > 1 else ''}.png")
        picture.savefig(files[-1])
    write_comparison(folder, text, [pixels(picture) for picture in figures])
    return files


def _print(comparison: Comparison, console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    if not comparison.tables:
        say("no run has finished")
    for table in comparison.tables:
        say("")
        say(render.heading(table), "bold")
        if line := render.distinction(table):
            say(line)
        wide = render.rich_table(table)
        fits = console.measure(wide).maximum <= console.width
        console.print(wide if fits else render.rich_table(table, dense=True))
        for line in render.legend(table):
            say(line, "dim")
    for title, lines in render.remarks(
        comparison.unfinished, comparison.repeated, comparison.problems
    ):
        say(f"\n{title}", "bold")
        for line in lines:
            say(f"  {line}")
    names = ", ".join(file.name for file in comparison.files)
    folder = _short(comparison.folder)
    say(f"\nwritten to   {folder}: {names}")
    say(f"look at it   tensorboard --logdir {LOGS if LOGS in folder.parents else folder}")


def _short(path: Path) -> Path:
    """Relative to the current folder, if it is inside."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
