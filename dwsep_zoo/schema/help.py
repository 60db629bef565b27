"""Help texts: keys, values and the descriptions of their fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from dwsep_zoo.schema.parse import nested_model


def help_lines(
    kind: type[BaseModel], values: Mapping[str, object], path: str = ""
) -> Iterator[str]:
    """``key=value   description`` for every field, groups last.

    Args:
        kind: the model of the values.
        values: as plain data.
        path: dotted name of the group, with a dot at its end.
    """
    groups = []
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    for name, field in fields.items():
        value, model = values.get(name), nested_model(field.annotation)
        if model is not None and isinstance(value, Mapping):
            groups.append((name, model, value, field.description))
        elif name in values:
            yield f"  {f'{path}{name}={_text(value)}':44} {field.description}"
    for name in values:
        if name not in fields:
            yield f"  {path}{name}={_text(values[name])}"
    for name, model, value, description in groups:
        yield f"\n{path}{name}: {description}"
        yield from help_lines(model, value, f"{path}{name}.")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
