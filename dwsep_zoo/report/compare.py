"""``compare``: all runs below some folders, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from dwsep_zoo.errors import UserError
from dwsep_zoo.files import is_sweep, write_together
from dwsep_zoo.report import render
from dwsep_zoo.report.comparison import MOST_TABLES, Comparison, collect
from dwsep_zoo.report.records import csv_text, json_text
from dwsep_zoo.report.table import Options
from dwsep_zoo.report.tex import tex_text
from dwsep_zoo.terminal import stdout_console

if TYPE_CHECKING:
    from rich.console import Console

    from dwsep_zoo.report.figures.panel import Drawing

LOGS = Path("logs")


def compare(
    paths: Iterable[Path | str],
    out_dir: Path | str | None = None,
    console: Console | None = None,
    *,
    options: Options | None = None,
) -> Comparison:
    """Print a table of the runs below ``paths`` and write the report into one folder.

    Args:
        paths: folders of runs, folders of such folders, or ``result.json`` files.
        out_dir: where to write; ``None``: the folder itself if ``paths`` is the folder of one
            multirun, else ``logs/compare/<date_time>``.
        console: where to print; ``None``: standard output.
        options: order, filter and reference of the rows.

    Raises:
        UserError: if there is no run, none that the filter lets through, no such reference, or the
            folder cannot be written.
    """
    sources = [Path(path) for path in paths]
    folder = Path(out_dir) if out_dir else _default_folder(sources)
    comparison = collect(sources, folder, options)
    try:
        comparison = replace(comparison, files=tuple(_write(comparison)))
    except OSError as error:
        place = error.filename or comparison.folder
        raise UserError(f"cannot write {place}: {error.strerror}") from error
    console = console or stdout_console()
    render.show(comparison, console)
    names = ", ".join(file.name for file in comparison.files)
    short = _short(folder)
    render.say(console, f"\nwritten to   {short}: {names}")
    logs = LOGS if LOGS in short.parents else short
    render.say(console, f"look at it   tensorboard --logdir {logs}")
    return comparison


def _default_folder(paths: Sequence[Path]) -> Path:
    if len(paths) == 1 and is_sweep(paths[0]):
        return paths[0]
    return LOGS / "compare" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")


def _write(comparison: Comparison) -> list[Path]:
    from dwsep_zoo.report.figures import comparison_figure, roofline_figure
    from dwsep_zoo.report.figures.svg import document
    from dwsep_zoo.report.html import html_report
    from dwsep_zoo.report.tensorboard import write_comparison

    text = render.markdown(comparison)
    texts = {
        "comparison.md": text,
        "comparison.csv": csv_text(comparison.tables),
        "comparison.json": json_text(comparison),
        "comparison.tex": tex_text(comparison.tables),
        "comparison.html": html_report(comparison),
    }
    drawings: dict[str, Drawing] = {}
    for number, table in enumerate(comparison.tables[:MOST_TABLES], 1):
        drawings[_numbered("comparison", number)] = comparison_figure(table)
    profiles = chain.from_iterable(comparison.profiles[:MOST_TABLES])
    for number, profile in enumerate(profiles, 1):
        drawings[_numbered("roofline", number)] = roofline_figure(profile.roofline)
    folder = comparison.folder
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[Path, str | bytes] = {folder / name: text for name, text in texts.items()}
    pictures: dict[str, bytes] = {}
    for name, drawing in drawings.items():
        contents[folder / f"{name}.png"] = pictures[name] = drawing.png()
        contents[folder / f"{name}.svg"] = document(drawing)
    write_together(contents)
    write_comparison(folder, text, pictures)
    return list(contents)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}{number}"


def _short(path: Path) -> Path:
    """Relative to the current folder, if it is inside."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
