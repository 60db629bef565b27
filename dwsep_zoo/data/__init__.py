"""Data sets: :func:`create_data` makes the data module of each from its settings."""

from __future__ import annotations

from pathlib import Path

from dwsep_zoo.data.cifar import Cifar
from dwsep_zoo.data.cifar_shifted import Cifar10c, Cifar10v1
from dwsep_zoo.data.csv_table import Csv
from dwsep_zoo.data.digits import Digits
from dwsep_zoo.data.folder import Folder
from dwsep_zoo.data.hugging_face import HuggingFace
from dwsep_zoo.data.imagenette import Imagenette
from dwsep_zoo.data.mix import Mixing
from dwsep_zoo.data.module import ImageData
from dwsep_zoo.data.policies import check_policy
from dwsep_zoo.data.source import COMMON, DataSet, check_options
from dwsep_zoo.data.tiny_imagenet import TinyImagenet
from dwsep_zoo.data.webdataset import WebDataset
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.schema.data_settings import DataSettings

__all__ = ["DATASETS", "ImageData", "check_trainable", "create_data", "list_options"]

DATASETS: dict[str, DataSet] = {
    "cifar10": Cifar,
    "cifar100": Cifar,
    "cifar10_1": Cifar10v1,
    "cifar10_c": Cifar10c,
    "csv": Csv,
    "digits": Digits,
    "folder": Folder,
    "hf": HuggingFace,
    "imagenet": Folder,
    "imagenette": Imagenette,
    "imagewoof": Imagenette,
    "tiny_imagenet": TinyImagenet,
    "webdataset": WebDataset,
}


def create_data(
    settings: DataSettings, *, seed: int, data_dir: str | Path, mixing: Mixing | None = None
) -> ImageData:
    """Make the data module of a data set; nothing is read or downloaded yet.

    Args:
        settings: ``configs/data/<name>.yaml`` and the user's changes.
        seed: of the order of the images and of their augmentation.
        data_dir: folder of downloaded sets and of caches.
        mixing: of training images; ``None``: none.

    Raises:
        UserError: for an unknown name or policy, a key that has no effect on this set, a missing
            folder.
    """
    options = list_options(settings.name)
    check_options(settings, options)
    if (policy := settings.augment.auto_augment) is not None:
        never_files = settings.in_memory or settings.cache or "in_memory" not in options
        check_policy(policy, batched=bool(never_files))
    folder = Path(data_dir).expanduser()
    source = DATASETS[settings.name](settings, folder)
    return ImageData(settings, source, seed=seed, data_dir=folder, mixing=mixing)


def check_trainable(name: str) -> None:
    """Raises UserError for a data set that is made for tests alone."""
    if getattr(DATASETS[choose(name, DATASETS, "data")], "test_only", False):
        raise UserError(
            f"data={name} has test images alone: dwsep eval RUN data={name} tests a network on them"
        )


def list_options(name: str) -> frozenset[str]:
    """The keys that a data set takes, such as ``image_size`` and ``augment.flip``.

    Raises:
        UserError: for an unknown data set, with the nearest.
    """
    return COMMON | DATASETS[choose(name, DATASETS, "data")].options
