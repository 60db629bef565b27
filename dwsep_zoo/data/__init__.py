"""Data sets: ``create_data(name, ...)`` makes the data module of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dwsep_zoo.data.cifar import create_cifar
from dwsep_zoo.data.digits import create_digits
from dwsep_zoo.data.folder import create_folder, create_imagenet
from dwsep_zoo.data.imagenette import create_imagenette
from dwsep_zoo.data.module import ImageData
from dwsep_zoo.errors import choose

__all__ = ["DATASETS", "ImageData", "create_data", "list_options"]

DATASETS: dict[str, Callable[..., ImageData]] = {
    "cifar10": partial(create_cifar, "cifar10"),
    "cifar100": partial(create_cifar, "cifar100"),
    "digits": create_digits,
    "folder": create_folder,
    "imagenet": create_imagenet,
    "imagenette": create_imagenette,
}


def create_data(name: str, *, seed: int, data_dir: str | Path, **options: Any) -> ImageData:
    """Make the data module of a data set; nothing is read or downloaded yet.

    Args:
        name: one of :data:`DATASETS`.
        seed: of the order of the images and of their augmentation.
        data_dir: where downloaded sets lie.
        **options: as in ``configs/data/<name>.yaml``.

    Raises:
        UserError: for an unknown name or option, with the nearest, and for impossible values.
    """
    known = list_options(name)
    for key in options:
        choose(key, known, f"option of data={name}")
    return DATASETS[name](seed=seed, data_dir=str(data_dir), **options)


def list_options(name: str) -> list[str]:
    """The names of a data set's options.

    Raises:
        UserError: for an unknown data set, with the nearest.
    """
    parameters = dict(inspect.signature(DATASETS[choose(name, DATASETS, "data")]).parameters)
    if parameters.pop("options", None):  # handed on
        parameters.update(inspect.signature(ImageData).parameters)
    return sorted(set(parameters) - {"name", "source", "seed", "data_dir"})
