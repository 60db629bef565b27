"""One progress bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

log = logging.getLogger("dwsep_zoo")

LINES = 4


@contextmanager
def progress(
    title: str, total: int | None, *, done: int = 0, is_bytes: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show how far something is; what it yields is called with the amount of every step.

    Args:
        title: what is being done.
        total: amount of the whole, ``None`` if unknown.
        done: amount done before.
        is_bytes: count in megabytes, with their speed.
    """
    if not sys.stderr.isatty() or int(os.environ.get("LOCAL_RANK", 0)) > 0:
        yield _lines(title, total, done)
        return
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
    if is_bytes:
        columns += [DownloadColumn(), TransferSpeedColumn()]
    else:
        columns += [MofNCompleteColumn()]
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda amount: bar.advance(task, amount)


def _lines(title: str, total: int | None, done: int) -> Callable[[int], None]:
    """A line at the start and at every quarter of the whole."""
    log.info("%s", title)
    said = LINES * done // total if total else 0

    def advance(amount: int) -> None:
        nonlocal done, said
        done += amount
        if total and LINES * done // total > said:
            said = LINES * done // total
            log.info("%s: %d %%", title, 100 * done // total)

    return advance
