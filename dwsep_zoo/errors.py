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
    raise UserError(f"unknown {what} {value!r}{hint} choices: {', '.join(names) or 'none'}")


def nearest(word: str, names: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The name most like a word, if any is like it at all; the first of equals.

    Upper and lower case are alike, and so are ``-`` and ``_``.
    """
    word = _folded(word)
    likeness = {name: _likeness(word, _folded(name)) for name in names}
    best = max(likeness, key=likeness.__getitem__, default=None)
    return best if best is not None and likeness[best] >= cutoff else None


def _folded(name: str) -> str:
    return name.casefold().replace("-", "_")


def _likeness(word: str, name: str) -> float:
    """Above 1 for the name itself, its beginning and one of its words, in this order."""
    parts = name.split("_")
    if word == name:
        return 4.0
    if len(word) > 2 and name.startswith(word):
        return 3.0
    if len(word) > 1 and word in parts:
        return 2.0
    alike = difflib.SequenceMatcher(None, word, name).ratio()
    return max(alike, *(0.9 * difflib.SequenceMatcher(None, word, p).ratio() for p in parts))


def say(error: Exception, where: str = "") -> None:
    """Print an error in one line; ``where`` stands before an unexpected one."""
    text = " ".join(str(error).split())
    if not isinstance(error, UserError):
        text = f"{where}{type(error).__name__}: {text}"
    print(f"error: {text}", file=sys.stderr)


def install_line(extra: str) -> str:
    """The command that installs what an extra of this package needs."""
    return f'pip install "dwsep-zoo[{extra}]"'


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
