"""Parse plain data into frozen, typed groups, and report a fault in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, to_json

from dwsep_zoo.errors import UserError, choose, nearest

M = TypeVar("M", bound=BaseModel)
G = TypeVar("G", bound="Group")

# How a message goes on after "must be", by pydantic's type of error.
_PHRASES = {
    "bool_type": "true or false",
    **dict.fromkeys(("dict_type", "mapping_type", "model_type"), "a group of keys"),
    "model_attributes_type": "a group of keys",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_type": "text",
    "tuple_type": "a list",
}

_ALIASES = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "gpus": "devices",
    "dropout": "drop_rate",
}
"""Names that other programs have for keys, for hints."""


class Group(BaseModel):
    """A group of settings: every key is required, known, of the right type, finite, and final."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """The group as JSON would hold it: dictionaries, lists, numbers and texts."""
        return self.model_dump(mode="json")

    def replace(self: G, **changes: object) -> G:
        """A copy with other values, which are checked like those of the original."""
        return parse(type(self), {**self.plain(), **changes})


def parse(kind: type[M], values: object, where: str = "") -> M:
    """Read plain data as ``kind``.

    Args:
        kind: a pydantic model.
        values: nested mappings, lists and scalars.
        where: dotted name of the group, for messages.

    Raises:
        UserError: in one line, with the key, its value and what it may be.
    """
    try:
        # As JSON, in which a strict tuple is a list.
        return kind.model_validate_json(to_json(values, inf_nan_mode="constants"))
    except ValidationError as error:
        _refuse(error, kind, values, where)


def _refuse(
    error: ValidationError, kind: type[BaseModel], values: object, where: str = ""
) -> NoReturn:
    """Raise the first fault of an error as a UserError in one line."""
    details = error.errors(include_url=False)
    # A key that is unknown says more than those that are missing in its place.
    details.sort(key=lambda one: one["type"] != "extra_forbidden")
    path, value, in_list = _locate(details[0], values)
    same = [one for one in details if _locate(one, values)[0] == path]
    first, key = same[0], ".".join([where, *path] if where else path)
    if first["type"] == "extra_forbidden":
        prefix = f"{where}." if where else ""
        raise unknown_key(key, [f"{prefix}{name}" for name in key_names(kind)]) from None
    if first["type"] == "missing" and not in_list:
        raise UserError(f"{key} is missing") from None
    if first["type"] == "value_error" and not str(first["ctx"]["error"]).startswith("must "):
        raise UserError(str(first["ctx"]["error"])) from None
    if len(same) == 1 and first["type"] == "literal_error" and isinstance(value, str):
        choose(value, _choices(first), key)
    phrases = dict.fromkeys(_phrase(one, of_part=_locate(one, values)[2]) for one in same)
    raise UserError(f"{key} must be {' or '.join(phrases)}; got {_shown(value)}") from None


def _locate(detail: ErrorDetails, values: object) -> tuple[list[str], object, bool]:
    """The path and value that an error is about, and whether that is an element of a plain list."""
    path, in_list = [], False
    for part in detail["loc"]:  # pydantic's names of types stand between the keys
        items: dict[int | str, object] = {}
        if isinstance(values, (list, tuple)):
            items = dict(enumerate(values))
        elif isinstance(values, Mapping):
            items = {str(key): value for key, value in values.items()}  # YAML has numbers as keys
        if isinstance(part, int) and not isinstance(items.get(part), Mapping):
            in_list = True
        elif part in items or detail["type"] == "missing":
            path.append(str(part))
            values = items.get(part)
    return path, values, in_list


def key_names(kind: type[BaseModel], path: str = "") -> Iterator[str]:
    """Dotted names of all fields, a group before its keys."""
    for name, field in kind.model_fields.items():
        key = f"{path}{field.alias or name}"
        yield key
        if model := nested_model(field.annotation):
            yield from key_names(model, f"{key}.")


def nearest_key(key: str, keys: Iterable[str]) -> str | None:
    """The key that a wrong one stands for, all dotted, if it is like any."""
    group, _, word = key.rpartition(".")
    everywhere: dict[str, str] = {}
    beside: dict[str, str] = {}
    for name in keys:
        own_group, _, last = name.rpartition(".")
        everywhere.setdefault(last, name)
        if own_group == group:
            beside[last] = name
    word = _ALIASES.get(word.casefold(), word)
    # First a key of this very name anywhere, then one much like it, at last one a little like it.
    for names, cutoff in ((everywhere, 4.0), (beside, 0.8), (everywhere, 0.8), (beside, 0.6)):
        if found := nearest(word, names, cutoff=cutoff):
            return names[found]
    return None


def unknown_key(key: str, keys: Sequence[str]) -> UserError:
    """The error for a key that is none of ``keys``, all dotted, with the nearest one."""
    group, _, word = key.rpartition(".")
    what = f"key of {group}" if group else "key"
    found = nearest_key(key, keys)
    if found and found.rpartition(".")[0] != group:
        return UserError(f"unknown {what} {word!r}; did you mean {found}=...?")
    hint = f"; did you mean {found.rpartition('.')[2]!r}?" if found else ";"
    beside = {name.rpartition(".")[2] for name in keys if name.rpartition(".")[0] == group}
    return UserError(f"unknown {what} {word!r}{hint} choices: {', '.join(sorted(beside))}")


def nested_model(annotation: object) -> type[BaseModel] | None:
    """The model in ``Model`` or ``Model | None``."""
    for part in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _phrase(detail: ErrorDetails, *, of_part: bool = False) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if of_part:
        return "a longer list" if kind == "missing" else f"a list, each {_phrase(detail)}"
    if kind == "value_error":
        return str(context["error"]).removeprefix("must be ").removeprefix("must ")
    if kind == "literal_error":
        return " or ".join(_choices(detail))
    if kind == "too_short":
        return f"a list of at least {context['min_length']}"
    if kind == "too_long":
        return f"a list of at most {context['max_length']}"
    if kind in _PHRASES:
        return _PHRASES[kind].format(**context)
    return detail["msg"].removeprefix("Input should be ")


def _choices(detail: ErrorDetails) -> list[str]:
    """The values of a Literal."""
    return [text.strip("'") for text in re.findall(r"'[^']*'|-?\d+", detail["ctx"]["expected"])]


def _shown(value: object) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."
