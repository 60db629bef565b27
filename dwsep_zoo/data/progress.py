"""One progress bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console

log = logging.getLogger("dwsep_zoo")

LINES = 4


@contextmanager
def progress(
    title: str, total: int | None, *, done: int = 0, is_bytes: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show the progress of a task; yields a function that takes the amount of every step.

    Args:
        title: the task.
        total: amount of the whole, ``None`` if unknown.
        done: amount done before.
        is_bytes: count in megabytes, with their speed.
    """
    if not sys.stderr.isatty() or int(os.environ.get("LOCAL_RANK", 0)) > 0:
        yield _lines(title, total, done)
        return
    columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description}"), bars.BarColumn()]
    counts = [bars.DownloadColumn(), bars.TransferSpeedColumn()]
    columns += counts if is_bytes else [bars.MofNCompleteColumn()]
    columns += [bars.TimeRemainingColumn()]
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda amount: bar.advance(task, amount)


def _lines(title: str, total: int | None, done: int) -> Callable[[int], None]:
    """Log a line at the start and at every quarter of the whole."""
    log.info("%s", title)
    said = LINES * done // total if total else 0

    def advance(amount: int) -> None:
        nonlocal done, said
        done += amount
        if total and LINES * done // total > said:
            said = LINES * done // total
            log.info("%s: %d %%", title, 100 * done // total)

    return advance
