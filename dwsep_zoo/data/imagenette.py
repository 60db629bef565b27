"""Imagenette: ten easy classes of ImageNet (J. Howard, github.com/fastai/imagenette)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dwsep_zoo.data.download import extract, fetch
from dwsep_zoo.data.folder import Folder
from dwsep_zoo.data.module import ImageData
from dwsep_zoo.data.options import choose
from dwsep_zoo.data.splits import Labelled
from dwsep_zoo.errors import UserError

URL = "https://s3.amazonaws.com/fast-ai-imageclas/{}.tgz"

# Shorter side of the stored pictures: folder in the archive, checksum.
SIZES = {
    "160": ("imagenette2-160", "e793b78cc4c9e9a4ccc0c1155377a412"),
    "320": ("imagenette2-320", "3df6f0d01a2c9592104656642f5e78a3"),
    "full": ("imagenette2", "fe2fc210e6bb7c5664d602c3cd71e612"),
}

CLASS_NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


class Imagenette:
    """9,469 training pictures and 3,925 under ``val``.

    Args:
        root: folder of the archive, and where it is unpacked; or the unpacked folder itself.
        url: where to download the archive from; ``None``: the authors' place.
        size: one of :data:`SIZES`.
    """

    def __init__(self, root: Path, url: str | None, size: str):
        self.root = root
        self.folder, self.md5 = SIZES[size]
        self.url = url or URL.format(self.folder)

    def prepare(self) -> None:
        """Download and unpack what is not there yet."""
        if not self._pictures().is_dir():
            archive = fetch([self.url], self.root / f"{self.folder}.tgz", self.md5)
            extract(archive, self.folder, self.root)

    def load(self) -> Labelled:
        """List the pictures."""
        return Folder(self._pictures(), CLASS_NAMES).load()

    def _pictures(self) -> Path:
        return self.root if (self.root / "train").is_dir() else self.root / self.folder


def create_imagenette(
    *,
    data_dir: str,
    root: str | None = None,
    url: str | None = None,
    size: int | str = 160,
    batch_size: int = 64,
    image_size: int | None = 128,
    **options: Any,
) -> ImageData:
    """``data=imagenette``, with the options of :class:`ImageData`."""
    if root is not None and not Path(root).expanduser().is_dir():
        raise UserError(f"data.root={root}: there is no such folder")
    source = Imagenette(
        Path(root or data_dir).expanduser(), url, choose(str(size), SIZES, "data.size")
    )
    return ImageData(
        "imagenette",
        source,
        batch_size=batch_size,
        image_size=image_size,
        data_dir=data_dir,
        **options,
    )
