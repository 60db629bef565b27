"""Tables on the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 160  # where the output is no terminal, so that no name is folded


def escape_names() -> None:
    """Escape what a stream cannot encode; names of files may be in any encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def stdout_console() -> Console:
    """Standard output: as wide as the terminal, and wide enough for any table in a pipe or file."""
    from rich.console import Console  # not needed for what prints no table

    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def table(
    title: str | None,
    headings: Sequence[str],
    rows: Iterable[Sequence[str] | None],
    *,
    words: Collection[str] = ("",),
    **style: Any,
) -> Table:
    """A table whose cells may hold rich's markup.

    Args:
        title: the line above it.
        headings: one for each column.
        rows: the cells of each row; ``None`` draws a line.
        words: headings of the columns of text, which are aligned to the left and fold; the others
            hold numbers.
        style: further arguments of rich's ``Table``.
    """
    from rich.table import Table

    made = Table(title=title, **style)
    for heading in headings:
        text = heading in words
        made.add_column(
            heading, justify="left" if text else "right", overflow="fold", no_wrap=not text
        )
    for row in rows:
        if row is None:
            made.add_section()
        else:
            made.add_row(*row)
    return made


def fold(text: str, width: int | None = None) -> str:
    """Break lines that are longer than ``width``, else the terminal's, between their words."""
    wrapper = textwrap.TextWrapper(
        width or shutil.get_terminal_size().columns,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(wrapper.fill(line) for line in text.split("\n"))


def by(size: Iterable[int]) -> str:
    """A size, such as ``3 x 224 x 224``."""
    return " x ".join(map(str, size))
