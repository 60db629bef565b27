"""Checks of what users set, each with one line that names the key and the value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dwsep_zoo.errors import UserError, check_number, choose

__all__ = ["at_least", "check_jitter", "check_keys", "check_range", "choose", "open_fraction"]


def at_least(key: str, value: Any, minimum: int) -> int:
    """Return a whole number from ``minimum`` up.

    Raises:
        UserError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{key} must be a whole number from {minimum} up; got {value!r}")
    return value


def open_fraction(key: str, value: Any) -> float:
    """Return a number between 0 and 1, both excluded.

    Raises:
        UserError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise UserError(f"{key} must be greater than 0 and less than 1; got {value!r}")
    return float(value)


def check_jitter(value: Any) -> None:
    """Raises UserError unless ``data.augment.color_jitter`` is None or a number from 0 up."""
    key = "data.augment.color_jitter"
    check_number(key, value, optional=True)
    if value is not None and value < 0:
        raise UserError(f"{key} must be a number from 0 up; got {value!r}")


def check_range(key: str, pair: Sequence[Any], largest: float) -> None:
    """Raises UserError unless ``pair`` is two numbers in order, above 0 and at most ``largest``."""
    numbers = all(isinstance(value, (int, float)) for value in pair)
    if len(pair) != 2 or not numbers or not 0 < pair[0] <= pair[1] <= largest:
        bound = "" if largest == float("inf") else f" and at most {largest:g}"
        raise UserError(
            f"{key} must be two numbers, the smaller first, above 0{bound}; got {list(pair)}"
        )


def check_keys(group: str, options: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """Return the options that are set (not ``None``).

    Raises:
        UserError: for an unknown key, naming the nearest.
    """
    for key in options:
        choose(key, known, f"key of {group}")
    return {key: value for key, value in options.items() if value is not None}
