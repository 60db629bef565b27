"""``dwsep recipe``: the course of a recipe as a picture and a table, before any training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, read, split
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import atomic_write, check_writable
from dwsep_zoo.schema.numbers import LARGEST_NUMBER, Side
from dwsep_zoo.schema.texts import Place

if TYPE_CHECKING:
    from dwsep_zoo.report.pictures import Course

ROWS = 6
PARTS = 4
"""Columns of learning rates; the picture has all."""


class RecipeArguments(Arguments):
    """Draw learning rates and sizes by epoch; recipe=NAME, key=value choose as in dwsep train."""

    out: Place = Field("recipe.png", description="the picture")
    size: Side = Field(32, description="side of full images, where data.image_size is null")
    images: Annotated[int, Field(ge=2, le=LARGEST_NUMBER)] = Field(
        50_000, description="training images; an epoch's steps follow from them"
    )


def run(arguments: list[str]) -> None:
    own, chosen = split(arguments, RecipeArguments)
    _, options = read("recipe", own, RecipeArguments)
    out = Path(options.out)
    check_writable("out", out.parent)
    if out.is_dir():
        raise UserError(f"out={out} is a folder; it must be the picture's file")
    from dwsep_zoo.config import compose_settings

    settings = compose_settings(chosen)
    from dwsep_zoo.report.pictures import course_picture
    from dwsep_zoo.training.course import course_of
    from dwsep_zoo.training.prepare import network_without_data

    course = course_of(
        settings,
        network_without_data(settings),
        images=options.images,
        image_size=settings.data.image_size or options.size,
    )
    model, optimizer = settings.model.name, settings.recipe.optimizer
    picture = course_picture(course, f"{model}, {optimizer}, {options.images:,} training images")
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, picture.png())
    print(*_table(course), out, sep="\n")


def _table(course: Course) -> Iterator[str]:
    yield f"{course.steps:,} steps of {course.images:,} images"
    names = list(course.rates)
    shown = names if len(names) <= PARTS else [*names[:1], *names[-2:]]
    sized = len(set(course.sizes)) > 1
    yield "  ".join(["   epoch", *(f"{name:>16}" for name in shown), *(["    size"] * sized)])
    for place in _places(course.epochs):
        row = [f"{course.epochs[place]:8.1f}"]
        row += [f"{course.rates[name][place]:16.4g}" for name in shown]
        yield "  ".join([*row, *([f"{course.sizes[place]:8}"] * sized)])
    if len(names) > len(shown):
        yield f"learning rates of {len(names)} parts; the picture has all of them"


def _places(epochs: Sequence[float]) -> list[int]:
    """About evenly spaced ones, with the first and the last."""
    last = epochs[-1]
    wanted = [last * number / (ROWS - 1) for number in range(ROWS)]
    return sorted({min(range(len(epochs)), key=lambda i: abs(epochs[i] - w)) for w in wanted})
