"""Kinds of numbers and options that settings have, with their bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

Scalar = bool | int | float | str
Option = Scalar | Annotated[tuple[Scalar, ...], Field(strict=False)] | None

LARGEST_NUMBER = 10**9  # of images, steps or epochs
Whole = Annotated[int, Field(ge=0, le=LARGEST_NUMBER)]
Natural = Annotated[int, Field(ge=1, le=LARGEST_NUMBER)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Portion = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Amount = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Limit = Whole | Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Width = Annotated[float, Field(gt=0, le=32)]
"""A factor on widths; at 32 a layer has 1,024 times the weights."""

LARGEST_SIDE = 4096  # pixels; 50 MB an image as float32, and its activations many times that
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Devices = Annotated[int, Field(ge=1, le=64)]
Pixels = Annotated[int, Field(ge=0, le=LARGEST_SIDE)]


def _not_bool(value: object) -> object:
    if isinstance(value, bool):  # equals 1 or 0, which a choice may have
        raise ValueError("must be a number or a word")
    return value


NotBool = BeforeValidator(_not_bool)


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("must be [lowest, highest]")
    return ends


Range = Annotated[tuple[Rate, Rate], AfterValidator(_ascending)]
AreaRange = Annotated[tuple[Portion, Portion], AfterValidator(_ascending)]
