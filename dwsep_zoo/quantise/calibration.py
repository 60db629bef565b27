"""Pictures to calibrate with, and others to compare on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from dwsep_zoo.artefacts.artefact import Artefact
from dwsep_zoo.artefacts.data import data_for, own_settings, ready
from dwsep_zoo.artefacts.export import compared_images
from dwsep_zoo.artefacts.preprocess import Picture
from dwsep_zoo.artefacts.sources import pictures_in
from dwsep_zoo.data.listing import split_of
from dwsep_zoo.errors import UserError
from dwsep_zoo.weights.classes import outputs_of

LEAST = 2


def pictures_of(artefact: Artefact, source: str) -> list[str]:
    """The pictures below a folder, of a pattern, or a file; folders are taken for classes.

    Raises:
        UserError: for a folder of a class that the network does not have, or no picture.
    """
    found, root = pictures_in([source]), Path(source).expanduser()
    if root.is_dir() and artefact.about.class_names:
        folders = [Path(name).relative_to(root).parts[:-1] for name in found]
        ways = [parts[1:] if parts and split_of(parts[0]) else parts for parts in folders]
        if names := sorted({way[0] for way in ways if way}):
            outputs_of(names, artefact.class_names, artefact.what)
    return found


def calibration_images(
    artefact: Artefact, pictures: Sequence[Picture] | None, number: int, data_dir: str | Path
) -> tuple[Tensor, Tensor]:
    """Images to calibrate with, and up to 200 others to compare on.

    Args:
        artefact: that takes them.
        pictures: to take both from, evenly spread; ``None``: training images of the run's data, and
            its test images.
        number: of the first ones.
        data_dir: folder of downloaded sets and caches.

    Raises:
        UserError: for fewer than 2, or none to be found.
    """
    if pictures is None:
        return _of_run(artefact, number, data_dir), compared_images(artefact, None, data_dir)[0]
    _check(len(pictures))
    chosen = set(np.linspace(0, len(pictures) - 1, min(number, len(pictures))).round().astype(int))
    own = [picture for place, picture in enumerate(pictures) if place in chosen]
    others = [picture for place, picture in enumerate(pictures) if place not in chosen]
    images = artefact.preprocess(own)
    if not others:
        return images, images
    return images, compared_images(artefact, others, data_dir)[0]


def _of_run(artefact: Artefact, number: int, data_dir: str | Path) -> Tensor:
    settings = own_settings(artefact, "give some with pictures=FOLDER").data
    data = ready(artefact, data_for(artefact, settings.replace(batch_size=number), data_dir))
    outputs_of(data.class_names, artefact.class_names, artefact.what)
    _check(len(data.splits["train"]))
    batch = next(iter(data.statistics_dataloader(number)))
    return data.prepare_batch(batch)[0]


def _check(number: int) -> None:
    if number < LEAST:
        raise UserError(
            f"calibration needs at least {LEAST} pictures, better 32; got {number}, "
            "of which no range of activations can be told"
        )
