"""``dwsep lr-find``: which learning rate? A short training with a rising one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, read, split
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import atomic_write, check_writable
from dwsep_zoo.schema.numbers import Rate
from dwsep_zoo.schema.texts import Place


class RangeArguments(Arguments):
    """Train some steps with a rising rate; model=NAME, key=value choose as in dwsep train."""

    out: Place = Field("lr_find.png", description="the picture: loss against rate")
    lowest: Rate = Field(1e-5, description="recipe.lr of the first step")
    highest: Rate = Field(10.0, description="recipe.lr of the last step, if the loss stays finite")
    steps: Annotated[int, Field(ge=10, le=10_000)] = Field(100, description="optimizer steps")


def run(arguments: list[str]) -> None:
    own, chosen = split(arguments, RangeArguments)
    _, options = read("lr-find", own, RangeArguments)
    if not options.lowest < options.highest:
        raise UserError(f"lowest={options.lowest:g} must be below highest={options.highest:g}")
    out = Path(options.out)
    check_writable("out", out.parent)
    if out.is_dir():
        raise UserError(f"out={out} is a folder; it must be the picture's file")
    from dwsep_zoo.config import compose_settings

    settings = compose_settings(chosen)
    for key in ("resume", "ckpt_path"):
        if value := getattr(settings, key):
            raise UserError(f"lr-find tests the first steps of a new run; leave {key}={value} out")
    if settings.trainer.strategy == "ddp":
        raise UserError("lr-find trains in one process; leave trainer=ddp out")
    from dwsep_zoo.report.pictures.range_test import range_picture
    from dwsep_zoo.training.lr_find import find_lr
    from dwsep_zoo.training.optim import check_optimizer
    from dwsep_zoo.training.prepare import check_network_and_data
    from dwsep_zoo.training.teacher import check_teacher

    check_optimizer(settings.recipe)
    check_teacher(settings)
    check_network_and_data(settings)
    found = find_lr(settings, lowest=options.lowest, highest=options.highest, steps=options.steps)
    recipe, suggestion = settings.recipe, found.suggestion
    names = (settings.model.name, settings.data.name, recipe.optimizer)
    title = f"{', '.join(names)}, {found.images} images a step"
    picture = range_picture(found.rates, found.losses, found.smoothed, suggestion, title)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, picture.png())
    print(out)
    if suggestion is None:
        raise UserError(
            f"the loss never falls between recipe.lr={options.lowest:g} and {found.rates[-1]:g} in "
            f"{len(found.losses)} steps; look at {out}, and try more steps or another lowest"
        )
    line = [*chosen, f"recipe.lr={suggestion:g}"]
    if settings.data.batch_size == "auto":  # another one might be chosen next time
        line.append(f"data.batch_size={found.batch_size}")
    if recipe.optimizer == "muon":  # in proportion, as it was in the test
        line.append(f"recipe.muon_lr={suggestion * recipe.muon_lr / recipe.lr:.2g}")
    print(f"suggested for {found.images} images a step, a tenth of where the loss is least:")
    last = {text.partition("=")[0]: place for place, text in enumerate(line)}  # it counts
    print("dwsep train", shlex.join(line[place] for place in sorted(last.values())))
