"""Where tables are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 160  # where the output is no terminal, so that no name is folded


def stdout_console() -> Console:
    """Standard output: as wide as the terminal, and wide enough for any table in a pipe or file."""
    from rich.console import Console  # not needed for what prints no table

    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)
