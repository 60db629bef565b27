"""Errors of the user, in one line each."""

from __future__ import annotations

import difflib
import math
import sys
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
    near = nearest(str(value), names)
    hint = f"; did you mean {near!r}?" if near else ";"
    raise UserError(f"unknown {what} {value!r}{hint} choices: {', '.join(names)}")


def nearest(word: str, names: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """The name most like a word, if any is like it at all; upper and lower case are alike."""
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=cutoff)
    return folded[near[0]] if near else None


def say(error: Exception, where: str = "") -> None:
    """Print an error in one line; ``where`` stands before an unexpected one."""
    text = " ".join(str(error).split())
    if not isinstance(error, UserError):
        text = f"{where}{type(error).__name__}: {text}"
    print(f"error: {text}", file=sys.stderr)


def check_number(key: str, value: object, *, optional: bool = False) -> None:
    """Raises UserError unless ``value`` is a finite number; ``optional`` lets None pass."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{key} must be a finite number; got {value!r}")


def first_line(error: BaseException) -> str:
    """The type of another library's error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
