"""What parts of a record are made of."""

from __future__ import annotations

import math
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, JsonValue, PlainValidator

Json: TypeAlias = dict[str, JsonValue]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value  # an integer stays one, also in CSV


def _measured(value: object) -> float | None:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return _number(value)


Number = Annotated[float, PlainValidator(_number)]
Measured = Annotated[float | None, PlainValidator(_measured)]
"""A number, or ``None`` if it was not measured; NaN and infinity count as not measured."""


class Part(BaseModel):
    """A part of a record: strict about types, tolerant of unknown keys, immutable."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    def plain(self) -> Json:
        """The keys that were recorded, as JSON has them."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
