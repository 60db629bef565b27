"""A command line's overrides: read, and refused in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep, ValueType
from hydra.errors import HydraException

from dwsep_zoo.config.files import groups_with_names
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.parse import key_names, nearest_key
from dwsep_zoo.schema.settings import Settings
from dwsep_zoo.schema.texts import checked_place

MOST_RUNS = 10_000
"""Of a sweep."""


@dataclass(frozen=True)
class Line:
    """The overrides of a command line.

    Attributes:
        overrides: as Hydra parses them.
        own: the user's folder of YAML files.
    """

    overrides: tuple[Override, ...]
    own: str | None = None

    @property
    def first(self) -> list[str]:
        """One text for each override, of a sweep its first value."""
        return [with_value(o, values_of(o)[0]) for o in self.overrides]

    @property
    def keys(self) -> list[str]:
        """The keys and groups that are set."""
        return [o.key_or_group for o in self.overrides]

    @property
    def swept(self) -> list[Override]:
        """The overrides with several values."""
        return [o for o in self.overrides if o.is_sweep_override()]

    def value(self, key: str) -> object:
        """The last value of a key; ``None`` if it is not set."""
        found = [o.value() for o in self.overrides if o.key_or_group == key]
        return found[-1] if found else None


def read_line(overrides: Sequence[str], own: str | None = None) -> Line:
    """Parse the overrides of a command line.

    Args:
        overrides: ``key=value``, ``group=name``, ``+key=value`` or ``~key``.
        own: the user's folder of YAML files.

    Raises:
        UserError: for a text that is no override, or a folder that does not exist.
    """
    if own is not None:
        own = checked_place("--config-dir", own)
        if not Path(own).is_dir():
            raise UserError(f"--config-dir {own}: there is no such folder")
    parser = OverridesParser.create()
    line = Line(tuple(_spread(parser, _parse_override(parser, text)) for text in overrides), own)
    number = prod(len(values_of(override)) for override in line.overrides)
    if number > MOST_RUNS:
        raise UserError(f"{line.swept[0].input_line} and the like make {number:,} runs")
    return line


def _parse_override(parser: OverridesParser, text: str) -> Override:
    if text.startswith("+") and not text.startswith("++"):
        text = f"+{text}"  # adds the key or, if it exists, sets it
    key, equals, value = text.partition("=")
    try:
        text.encode()  # words that are not UTF-8 have surrogates
        return parser.parse_override(text)
    except UnicodeEncodeError as error:
        raise UserError(f"cannot read {text!r}: it is not UTF-8") from error
    except HydraException as error:
        try:
            found = parser.parse_override(f"{key}={quoted(value)}")
        except HydraException:
            found = None
        if not equals or found is None:
            near = nearest_key(re.sub(r"\W*([\w.-]*).*", r"\1", text), key_names(Settings))
            hint = f"; did you mean {near}=...?" if near else ""
            raise UserError(f"cannot read {text!r}: expected key=value{hint}") from error
        if not re.search(r"^[\[{('\"]|[,\\]|\${", value):  # a path, or words
            return found
        raise UserError(
            f"cannot read {text!r}: a text with such characters needs quotes within the shell's: "
            f'"{key}={quoted(value)}"'
        ) from error


def quoted(text: object) -> str:
    """A text as a value of an override."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), str(text))
    return "'" + escaped.replace("${", r"\${") + "'"


def _spread(parser: OverridesParser, override: Override) -> Override:
    """The override, with the names that a glob stands for; raises UserError if it has no value."""
    text = override.input_line
    value: object = override.value()
    if override.value_type == ValueType.INTERVAL_SWEEP:
        raise UserError(f"{text}: name the values, separated by commas")
    if isinstance(value, RangeSweep):
        first, last, step = float(value.start or 0), float(value.stop or 0), float(value.step)
        if not step or (last - first) / step > MOST_RUNS:
            raise UserError(f"{text} must have at most {MOST_RUNS:,} values")
    if isinstance(value, Glob):
        names = groups_with_names().get(override.key_or_group, [])
        found = value.filter(names)
        if found:
            return parser.parse_override(f"{override.get_key_element()}={','.join(found)}")
    elif values_of(override):
        return override
    raise UserError(f"{text} has no values")


def values_of(override: Override) -> list[Any]:
    """The value, or those of a sweep as texts."""
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.value()]


def with_value(override: Override, value: Any) -> str:
    """The override's text, with one of its values."""
    if not override.is_sweep_override():
        return override.input_line or ""
    sign = "++" if override.is_force_add() else "+" if override.is_add() else ""
    return f"{sign}{override.get_key_element().lstrip('+')}={value}"
