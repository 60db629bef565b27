"""``compare``: all runs below some folders, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from dwsep_zoo.errors import UserError
from dwsep_zoo.report import render, words
from dwsep_zoo.report.profiles import Profile, profiles
from dwsep_zoo.report.records import csv_text, json_text
from dwsep_zoo.report.results import Problem, Run, load_results
from dwsep_zoo.report.table import Options, Table, make_tables, select
from dwsep_zoo.report.tex import tex_text
from dwsep_zoo.terminal import stdout_console

if TYPE_CHECKING:
    from matplotlib.figure import Figure
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
        options: what was asked for.
        made: when, as ISO 8601.
        folder: where the files are.
        profiles: of each table, the rooflines that belong together.
        files: ``comparison.md``, ``.csv``, ``.json``, ``.tex``, ``.html`` and the pictures.
    """

    tables: tuple[Table, ...]
    unfinished: tuple[Run, ...]
    repeated: tuple[Run, ...]
    problems: tuple[Problem, ...]
    options: Options
    made: str
    folder: Path
    profiles: tuple[tuple[Profile, ...], ...]
    files: tuple[Path, ...] = ()


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
    comparison = collect(sources, folder, options or Options())
    try:
        comparison = replace(comparison, files=tuple(_write(comparison)))
    except OSError as error:
        place = error.filename or comparison.folder
        raise UserError(f"cannot write {place}: {error.strerror}") from error
    _print(comparison, console or stdout_console())
    return comparison


def collect(paths: Sequence[Path], folder: Path, options: Options) -> Comparison:
    """What :func:`compare` prints, and writes into ``folder``."""
    found, problems = load_results(paths)
    runs = select(found, options.where)
    tables, repeated = make_tables((run for run in runs if run.status == "finished"), options)
    measured = [profiles(table) for table in tables]
    return Comparison(
        tables=tuple(tables),
        unfinished=tuple(run for run in runs if run.status != "finished"),
        repeated=tuple(repeated),
        problems=(*problems, *(problem for _, damaged in measured for problem in damaged)),
        options=options,
        made=datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
        folder=folder,
        profiles=tuple(tuple(rooflines) for rooflines, _ in measured),
    )


def _default_folder(paths: Sequence[Path]) -> Path:
    # Hydra writes multirun.yaml into the folder of a sweep.
    if len(paths) == 1 and (paths[0] / "multirun.yaml").is_file():
        return paths[0]
    return LOGS / "compare" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")


def _write(comparison: Comparison) -> list[Path]:
    from PIL import Image

    from dwsep_zoo.report.figure import figure, pixels
    from dwsep_zoo.report.html import html_report
    from dwsep_zoo.report.roofline import roofline_figure
    from dwsep_zoo.report.tensorboard import write_comparison

    text = render.markdown(
        comparison.tables,
        profiles=comparison.profiles,
        options=comparison.options,
        unfinished=comparison.unfinished,
        repeated=comparison.repeated,
        problems=comparison.problems,
    )
    texts = {
        "comparison.md": text,
        "comparison.csv": csv_text(comparison.tables),
        "comparison.json": json_text(comparison),
        "comparison.tex": tex_text(comparison.tables),
        "comparison.html": html_report(comparison),
    }
    pictures: dict[str, Figure] = {}
    for number, table in enumerate(comparison.tables, 1):
        pictures[_numbered("comparison", number)] = figure(table)
    for number, profile in enumerate(chain.from_iterable(comparison.profiles), 1):
        pictures[_numbered("roofline", number)] = roofline_figure(profile.roofline)
    folder = comparison.folder
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in texts]
    for file, content in zip(files, texts.values(), strict=True):
        file.write_text(content, encoding="utf-8")
    images = {name: pixels(picture) for name, picture in pictures.items()}
    for name, picture in pictures.items():
        files += [folder / f"{name}.png", folder / f"{name}.svg"]
        Image.fromarray(images[name]).save(files[-2])
        _save_svg(picture, files[-1])
    write_comparison(folder, text, images)
    return files


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}{number}"


def _save_svg(picture: Figure, file: Path) -> None:
    import matplotlib

    picture.set_layout_engine("none")  # laid out when it was drawn
    # Words stay words, and the same comparison gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dwsep_zoo"}):
        picture.savefig(file, metadata={"Date": None})


def _print(comparison: Comparison, console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    if scope := words.scope(comparison.options):
        say(scope)
    if not comparison.tables:
        say("no run has finished")
    for table in comparison.tables:
        say("")
        say(words.heading(table), "bold")
        if line := words.distinction(table):
            say(line)
        wide = render.rich_table(table)
        # A measure of its own would end at the console's width.
        needed = console.measure(wide, options=console.options.update_width(1000)).maximum
        fits = needed <= console.width
        console.print(wide if fits else render.rich_table(table, dense=True))
        for line in words.verdicts(table):
            say(line)
        for line in words.warnings(table):
            say(line, "yellow")
        if latencies := render.rich_latencies(table):
            say("\nlatency of one batch", "bold")
            console.print(latencies)
        for line in words.legend(table):
            say(line, "dim")
    for title, lines in words.remarks(
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
