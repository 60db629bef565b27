"""What a user did wrong, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The input is wrong. The message is one line that names the value and what would be right.

    The command line prints the message alone and exits with code 2.
    """


def choose(value: str, choices: Iterable[str], what: str) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        UserError: naming the value, the nearest choice and all choices.
    """
    names = sorted(choices)
    if value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    raise UserError(f"unknown {what} {value!r}{hint} choices: {', '.join(names)}")


def check_number(key: str, value: object, *, optional: bool = False) -> None:
    """Raises UserError for what is no number; ``optional`` lets None pass."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{key} must be a number; got {value!r}")


def first_line(error: BaseException) -> str:
    """What another library's error says: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
