"""Typed options of a command line, and their help."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from dwsep_zoo.errors import UserError, choose, first_line, nearest
from dwsep_zoo.schema.help import help_lines
from dwsep_zoo.schema.numbers import LARGEST_SIDE, Width
from dwsep_zoo.schema.parse import Group, parse

if TYPE_CHECKING:
    from dwsep_zoo.analysis.count import Count
    from dwsep_zoo.models import ConvNet

LARGEST_NUMBER = 100_000  # of classes, channels or images


UNIT = "1 MAC = one multiply-add = 2 FLOPs"


class Arguments(Group):
    """Options of a command, given as ``key=value``; the fields' descriptions are its help."""


A = TypeVar("A", bound=Arguments)


def _split(value: object) -> object:
    """``a,b`` as a list; YAML's null in the word that stands for it."""
    parts = value.split(",") if isinstance(value, str) else value
    parts = parts if isinstance(parts, tuple | list) else (parts,)
    return tuple("null" if part is None else str(part).strip() for part in parts)


def _numbers(value: object) -> object:
    parts = _split(value)
    assert isinstance(parts, tuple)
    return tuple(int(part) if part.isdecimal() else part for part in parts)


Texts = Annotated[tuple[str, ...], BeforeValidator(_split), Field(min_length=1)]
Number = Annotated[int, Field(ge=1, le=LARGEST_NUMBER)]
Numbers = Annotated[tuple[Number, ...], BeforeValidator(_numbers), Field(min_length=1)]


def _conv(value: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(value, dict) and not isinstance(value.get("name"), str):
        raise ValueError("must be a name or {name: NAME, option: value}, a blank behind each colon")
    return value


Conv = Annotated[str | dict[str, Any], AfterValidator(_conv)]


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

    def build(self, name: str, conv: Conv, **options: Any) -> tuple[ConvNet, tuple[int, int, int]]:
        """A network and the ``(C, H, W)`` of its images.

        Raises:
            UserError: for a network that there is not, or an image smaller than its output stride.
        """
        from dwsep_zoo.models import build_model

        shape = self.model_dump(include=NetworkArguments.model_fields.keys() - {"size"})
        model = build_model(name, conv=conv, **shape, **options)
        channels, *paper = model.default_cfg["input_size"]
        height, width = (self.size, self.size) if self.size else paper
        if height < model.output_stride:
            raise UserError(
                f"images of {height} pixels are smaller than the output stride "
                f"{model.output_stride}; set output_stride=8 or a larger size"
            )
        return model, (channels, height, width)

    def count(self, name: str, conv: Conv) -> tuple[ConvNet, Count]:
        """A network without weights, and its counts; raises as :meth:`build` does."""
        import torch

        from dwsep_zoo.analysis.count import count

        with torch.device("meta"):
            # Stochastic depth costs nothing, but its module comes from timm, slow to import.
            model, input_size = self.build(name, conv, drop_path_rate=0.0)
        return model, count(model, input_size)


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
        print(f"usage: dwsep {command} {words + ' ' if words else ''}[key=value ...]")
        kinds: tuple[type[Arguments], ...] = (kind, *others)
        for one in kinds:
            print("", " ".join((one.__doc__ or "").split()), *_options(one), sep="\n")
        sys.exit(0)
    fields = {field.alias or name for name, field in kind.model_fields.items()}
    plain: list[str] = []
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals and not (words and _is_path(key, argument, fields)):
            values[choose(key, fields, "key")] = _value(key, text)
        elif words and not argument.startswith("-"):
            plain.append(argument)
        else:
            near = nearest(key.lstrip("-"), fields)
            is_option = argument.startswith("-")
            what = "unknown option" if is_option else f"{command}: cannot read"
            hint = f": {near}=..." if near else ""
            raise UserError(f"{what} {argument!r}; options are given as key=value{hint}")
    return plain, parse(kind, values)


def _is_path(key: str, argument: str, fields: set[str]) -> bool:
    return key not in fields and ("/" in key or os.path.exists(argument))


def _value(key: str, text: str) -> Any:
    """A scalar, list or mapping, as YAML reads it; ``1e5`` is a number and ``~`` a folder here."""
    if not text.strip():
        raise UserError(f"{key}= has no value")
    if text == "~":
        return text
    if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text):
        return float(text)
    try:
        value = yaml.safe_load(text)
        json.dumps(value, default=str)  # fails for a list that contains itself
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{key}={text} cannot be read: {reason}") from None
    return value


def _options(kind: type[Arguments]) -> Iterator[str]:
    """The help of each option, with its default as a user writes it."""
    defaults: dict[str, object] = {}
    for name, field in kind.model_fields.items():
        value = "..." if field.is_required() else field.default
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        defaults[field.alias or name] = text
    return help_lines(kind, defaults)
