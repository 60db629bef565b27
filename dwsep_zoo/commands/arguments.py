"""Typed options of a command line, and their help."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo

from dwsep_zoo.errors import UserError, choose, first_line, nearest
from dwsep_zoo.schema.help import help_lines
from dwsep_zoo.schema.parse import Group, parse
from dwsep_zoo.schema.settings import LARGEST_SIDE, Width

LARGEST_NUMBER = 100_000  # of classes, channels or images


class Arguments(Group):
    """Options of a command, given as ``key=value``; the fields' descriptions are its help."""


A = TypeVar("A", bound=Arguments)


def _split(value: object) -> object:
    """``a,b`` as a list; YAML's null in the word that stands for it."""
    parts = value.split(",") if isinstance(value, str) else value
    parts = parts if isinstance(parts, tuple | list) else (parts,)
    return tuple("null" if part is None else _number(str(part).strip()) for part in parts)


def _texts(value: object) -> object:
    split = _split(value)
    return tuple(map(str, split)) if isinstance(split, tuple) else split


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts), Field(min_length=1)]
Number = Annotated[int, Field(ge=1, le=LARGEST_NUMBER)]
Numbers = Annotated[tuple[Number, ...], BeforeValidator(_split), Field(min_length=1)]
Conv = str | dict[str, Any]


class NetworkArguments(Arguments):
    """The options that choose a network's shape."""

    width_mult: Width = Field(1.0, description="factor on every width")
    size: Annotated[int, Field(ge=1, le=LARGEST_SIDE)] | None = Field(
        None, description="side of the image in pixels; null: the paper's"
    )
    output_stride: int = Field(32, description="32 is the paper's; small images use 8 or 16")
    num_classes: Annotated[int, Field(ge=0, le=LARGEST_NUMBER)] = Field(
        1000, description="outputs of the classifier"
    )
    in_chans: Number = Field(3, description="channels of the image")


def read(
    command: str,
    arguments: Sequence[str],
    kind: type[A],
    *others: type[Arguments],
    words: str = "",
) -> tuple[list[str], A]:
    """Split a command line into its words and its options; print the help if it is asked for.

    Args:
        command: its name.
        arguments: the words after the name.
        kind: the options.
        others: further kinds of options, for the help.
        words: name of words without ``=`` in the help; empty: there are none.

    Raises:
        UserError: for an unknown option, naming the nearest, and for a value that cannot be.
        SystemExit: behind the help.
    """
    if {"-h", "--help"} & set(arguments):
        print(_help(command, (kind, *others), words))
        sys.exit(0)
    fields = _fields(kind)
    plain: list[str] = []
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals:
            values[choose(key, fields, "key")] = _value(key, text)
        elif argument.startswith("-"):
            raise UserError(f"unknown option {argument!r}; {_usage(key.lstrip('-'), fields)}")
        elif words:
            plain.append(argument)
        else:
            raise UserError(f"{command}: cannot read {argument!r}; {_usage(argument, fields)}")
    return plain, parse(kind, values)


def _usage(word: str, fields: Iterable[str]) -> str:
    near = nearest(word, fields)
    return f"options are given as key=value{f': {near}=...' if near else ''}"


def _fields(kind: type[Arguments]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in kind.model_fields.items()}


def _value(key: str, text: str) -> Any:
    """A scalar, list or mapping, as YAML reads it; ``1e5`` is a number here."""
    if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text):
        return float(text)
    try:
        value = yaml.safe_load(text)
        json.dumps(value, default=str)  # fails for a list that contains itself
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{key}={text} cannot be read: {reason}") from None
    return value


def _help(command: str, kinds: Sequence[type[Arguments]], words: str) -> str:
    lines = [f"usage: dwsep {command} {words + ' ' if words else ''}[key=value ...]"]
    for kind in kinds:
        defaults = {key: _default(field) for key, field in _fields(kind).items()}
        lines += ["", " ".join((kind.__doc__ or "").split()), *help_lines(kind, defaults)]
    return "\n".join(lines)


def _default(field: FieldInfo) -> object:
    """A default as a user writes it."""
    value = "..." if field.is_required() else field.default
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
