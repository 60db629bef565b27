"""The data that an artefact was trained on, and any data, prepared as the artefact says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from dwsep_zoo.data import ImageData, create_data, list_options
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.data_settings import DataSettings
from dwsep_zoo.schema.settings import Settings, parse_settings

if TYPE_CHECKING:
    from dwsep_zoo.artefacts.artefact import Artefact

PREPROCESSING = ("image_size", "interpolation", "crop_pct", "background")


def has_own_data(artefact: Artefact) -> bool:
    return isinstance(artefact.about.record.get("config"), dict)


def own_settings(artefact: Artefact, instead: str) -> Settings:
    """The settings of the run that trained a network.

    Args:
        artefact: the network.
        instead: advice for one that no run of this project trained.

    Raises:
        UserError: for such a network.
    """
    config = artefact.about.record.get("config")
    if not isinstance(config, dict):
        raise UserError(f"{artefact.what}: names no data of its own; {instead}")
    return parse_settings(config)


def data_for(artefact: Artefact, settings: DataSettings, data_dir: str | Path) -> ImageData:
    """A data set whose images are prepared as the artefact says; nothing is read yet.

    Args:
        artefact: that takes the images.
        settings: of the data set.
        data_dir: folder of downloaded sets and caches.
    """
    known = list_options(settings.name)
    about = artefact.about.plain()
    found = {key: about.get(key) for key in PREPROCESSING}
    settings = settings.replace(**{key: value for key, value in found.items() if key in known})
    return create_data(settings, seed=0, data_dir=data_dir)


def ready(artefact: Artefact, data: ImageData) -> ImageData:
    """Read a data set, and normalise its images as the artefact says."""
    data.prepare_data()
    data.setup()
    data.mean, data.std = data.pipeline.mean, data.pipeline.std = (
        artefact.about.mean,
        artefact.about.std,
    )
    return data


def batches(data: ImageData, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of a split and their labels, in order, without augmentation."""
    for batch in data._loader(split, training=False):
        yield data.prepare_batch(batch)
