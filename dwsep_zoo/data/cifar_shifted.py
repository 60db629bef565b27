"""CIFAR-10 as it is met elsewhere: other photographs and damaged ones, for tests alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dwsep_zoo.data.cifar import FILES as CIFAR
from dwsep_zoo.data.download import extract, fetch
from dwsep_zoo.data.memory import check_memory
from dwsep_zoo.data.source import ARCHIVE, existing_root
from dwsep_zoo.data.splits import Images, Labelled
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.schema.data_settings import DataSettings

CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
STATISTICS = (CIFAR["cifar10"].mean, CIFAR["cifar10"].std)
USUAL = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur"),
    *("motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast"),
    *("elastic_transform", "pixelate", "jpeg_compression"),
)
"""Corruptions over which results are usually averaged."""
OTHERS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
IN_SEVERITY = 10_000


class Cifar10v1:
    """CIFAR-10.1 v6: 2,000 new photographs, collected like CIFAR-10's (arXiv:1806.00451).

    ``root`` is the folder of its two files; ``None``: ``data_dir``. ``url`` is the folder from
    which they are downloaded. No checksum of them is published; their form is checked.
    """

    options = ARCHIVE
    test_only = True
    files = ("cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy")

    def __init__(self, settings: DataSettings, data_dir: Path):
        self.root = existing_root(settings) or data_dir / "cifar10_1"
        self.url = settings.url or (
            "https://raw.githubusercontent.com/modestyachts/CIFAR-10.1/master/datasets"
        )

    def prepare(self) -> None:
        """Download missing files."""
        for name in self.files:
            if not (self.root / name).is_file():
                fetch([f"{self.url.rstrip('/')}/{name}"], self.root / name, None)

    def load(self) -> Labelled:
        """Read the files."""
        pixels, labels = (_array(self.root / name) for name in self.files)
        _check(self.root, pixels, labels, len(labels))
        names = [f"test/{i}" for i in range(len(labels))]
        return _labelled(names, np.array(pixels), labels)


class Cifar10c:
    """CIFAR-10-C: CIFAR-10's test images, damaged in 19 ways (arXiv:1903.12261).

    ``root`` is the folder of the archive, where it is unpacked too, or the unpacked folder itself;
    ``None``: ``data_dir``. ``corruption`` is one of its files; ``None``: the usual 15.
    ``severity`` is 1 to 5; ``None``: all.
    """

    options = ARCHIVE | {"corruption", "severity"}
    test_only = True
    folder = "CIFAR-10-C"
    url = "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar?download=1"
    md5 = "56bf5dcef84df0e2308c6dcbcbbd8499"

    def __init__(self, settings: DataSettings, data_dir: Path):
        self.root = existing_root(settings) or data_dir
        self.urls = [settings.url or self.url]
        self.corruptions: tuple[str, ...] = USUAL
        if settings.corruption is not None:
            self.corruptions = (choose(settings.corruption, (*USUAL, *OTHERS), "data.corruption"),)
        self.severities = [settings.severity] if settings.severity else list(range(1, 6))

    def prepare(self) -> None:
        """Download and unpack the archive if its folder is missing."""
        if not self._folder().is_dir():
            archive = fetch(self.urls, self.root / f"{self.folder}.tar", self.md5)
            extract(archive, self.folder, self.root)

    def load(self) -> Labelled:
        """Read the chosen parts of the chosen files."""
        folder = self._folder()
        labels = _array(folder / "labels.npy")
        count = len(self.corruptions) * len(self.severities) * IN_SEVERITY
        check_memory(count, 32, bytes_per_pixel=3)
        pixels = np.empty((count, 32, 32, 3), dtype=np.uint8)
        names: list[str] = []
        own: list[np.ndarray] = []
        for corruption in self.corruptions:
            found = _array(folder / f"{corruption}.npy")
            _check(folder, found, labels, 5 * IN_SEVERITY)
            for severity in self.severities:
                part = slice((severity - 1) * IN_SEVERITY, severity * IN_SEVERITY)
                pixels[len(names) : len(names) + IN_SEVERITY] = found[part]
                names += [f"{corruption}/{severity}/{i}" for i in range(IN_SEVERITY)]
                own.append(labels[part])
        return _labelled(names, pixels, np.concatenate(own))

    def _folder(self) -> Path:
        return self.root if (self.root / "labels.npy").is_file() else self.root / self.folder


def _labelled(names: list[str], pixels: np.ndarray, labels: np.ndarray) -> Labelled:
    images = Images(names, labels.astype(np.int64), torch.from_numpy(pixels))
    return Labelled(list(CLASS_NAMES), {"test": images}, statistics=STATISTICS)


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot read {path}: {reason}; delete it to start again") from error


def _check(where: Path, pixels: np.ndarray, labels: np.ndarray, count: int) -> None:
    """Raises UserError for arrays that are not images of 32 x 32 pixels and their classes."""
    fits = pixels.dtype == np.uint8 and pixels.shape == (count, 32, 32, 3)
    if not fits or labels.shape != (count,) or labels.min() < 0 or labels.max() > 9:
        raise UserError(
            f"{where}: arrays of {pixels.shape} and {labels.shape} are not images of 32 x 32 "
            f"pixels in ten classes, {count} of each; delete them to start again"
        )
