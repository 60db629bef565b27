"""From plain data to a typed, frozen group of settings, with one line for what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from dwsep_zoo.errors import UserError, choose

M = TypeVar("M", bound=BaseModel)
G = TypeVar("G", bound="Group")

# How a message goes on after "must be", by pydantic's type of error.
_PHRASES = {
    "bool_type": "true or false",
    "dict_type": "a group of keys",
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
        return kind.model_validate(as_tuples(values))
    except ValidationError as error:
        raise UserError(describe(error, kind, values, where)) from None


def as_tuples(values: object) -> object:
    """The same data with tuples in place of lists, at every depth."""
    if isinstance(values, Mapping):
        return {key: as_tuples(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return tuple(as_tuples(value) for value in values)
    return values


def describe(error: ValidationError, kind: type[BaseModel], values: object, where: str = "") -> str:
    """The first fault of an error in one line."""
    details = error.errors(include_url=False)
    path, model = _field(kind, details[0]["loc"])
    key = ".".join([*([where] if where else []), *path])
    same = [one for one in details if _field(kind, one["loc"])[0] == path]
    first = same[0]
    if first["type"] == "extra_forbidden":
        return _unknown(key, model.model_fields)
    if first["type"] == "missing" and len(first["loc"]) == len(path):
        return f"{key} is missing"
    if first["type"] in ("model_type", "model_attributes_type"):
        return f"{key} must be a group of keys; got {_at(values, path)!r}"
    if first["type"] == "value_error" and not str(first["ctx"]["error"]).startswith("must "):
        return str(first["ctx"]["error"])
    if len(same) == 1 and first["type"] == "literal_error" and isinstance(first["input"], str):
        try:
            choose(first["input"], _choices(first), key)
        except UserError as unknown:
            return str(unknown)
    phrases = dict.fromkeys(_phrase(one, of_part=_in_list(one)) for one in same)
    return f"{key} must be {' or '.join(phrases)}; got {_shown(_at(values, path))}"


def _field(
    kind: type[BaseModel], loc: Iterable[int | str]
) -> tuple[tuple[str, ...], type[BaseModel]]:
    """The path of the field that an error is about, and the model that has or lacks it."""
    path: list[str] = []
    model: type[BaseModel] = kind
    for part in loc:
        path.append(str(part))
        field = model.model_fields.get(str(part))
        inner = nested_model(field.annotation) if field else None
        if inner is None:
            break
        model = inner
    return tuple(path), model


def nested_model(annotation: object) -> type[BaseModel] | None:
    """The model in ``Model`` or ``Model | None``."""
    for part in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _unknown(key: str, names: Iterable[str]) -> str:
    group, _, last = key.rpartition(".")
    try:
        choose(last, names, f"key of {group}" if group else "key")
    except UserError as error:
        return str(error)
    raise AssertionError(key)


def _in_list(detail: ErrorDetails) -> bool:
    """Whether an error is about an element of a list."""
    return any(isinstance(part, int) for part in detail["loc"])


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


def _at(values: object, path: Iterable[str]) -> object:
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _shown(value: object) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."
