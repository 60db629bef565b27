"""The pictures that a run leaves in its folder and in TensorBoard's IMAGES."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dwsep_zoo.errors import UserError, first_line
from dwsep_zoo.files import atomic_write
from dwsep_zoo.report.figures.panel import Drawing
from dwsep_zoo.report.pictures.confusion import confusion_picture
from dwsep_zoo.report.pictures.course import course_picture, recipe_picture
from dwsep_zoo.report.pictures.curves import curves_picture
from dwsep_zoo.report.pictures.parts import Captioned, Course, Nothing, RunParts
from dwsep_zoo.report.pictures.tiles import (
    batch_picture,
    filters_picture,
    mistakes_picture,
    sheet_picture,
)
from dwsep_zoo.report.tensorboard import write_pictures

__all__ = [
    "PICTURES",
    "Captioned",
    "Course",
    "Drawn",
    "Nothing",
    "RunParts",
    "course_picture",
    "draw_pictures",
    "sheet_picture",
]

PICTURES: dict[str, Callable[[RunParts], Drawing]] = {
    "batch": batch_picture,
    "confusion": confusion_picture,
    "mistakes": mistakes_picture,
    "curves": curves_picture,
    "filters": filters_picture,
    "recipe": recipe_picture,
}
"""By the names of their files."""


@dataclass
class Drawn:
    """Which pictures were drawn, and why the others were not.

    Attributes:
        names: of the files.
        left_out: the reason by file: the run has nothing to show there.
        failed: the reason by file: something is missing or went wrong.
    """

    names: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def draw_pictures(run: RunParts, folder: Path) -> Drawn:
    """Draw every picture of a run that can be drawn into its folder; no error leaves this.

    A picture that fails leaves an earlier one as it is. TensorBoard gets the same pictures if the
    folder has its events.
    """
    drawn, images = Drawn(), {}
    for name, draw in PICTURES.items():
        file = folder / f"{name}.png"
        try:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # letters that the font does not have
                    images[name] = draw(run).png()
            except Nothing as reason:
                file.unlink(missing_ok=True)  # of a state of the run that is past
                drawn.left_out[file.name] = str(reason)
                continue
            atomic_write(file, images[name])
        except UserError as error:
            drawn.failed[file.name] = str(error)
        # Data, checkpoints and Matplotlib raise errors of many kinds, and a run is finished here.
        except Exception as error:
            drawn.failed[file.name] = first_line(error)
        else:
            drawn.names.append(file.name)
    if images and any(folder.glob("events.out.tfevents.*")):
        try:
            write_pictures(folder, images)
        except Exception as error:
            drawn.failed["TensorBoard's IMAGES"] = first_line(error)
    return drawn
