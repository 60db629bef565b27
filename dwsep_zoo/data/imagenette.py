"""Imagenette and Imagewoof: ten classes of ImageNet (J. Howard, github.com/fastai/imagenette)."""

from __future__ import annotations

from pathlib import Path

from dwsep_zoo.data.download import extract, fetch
from dwsep_zoo.data.folder import list_folder
from dwsep_zoo.data.source import ARCHIVE, FILES, archive_root
from dwsep_zoo.data.splits import Labelled
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.data_settings import DataSettings

URL = "https://s3.amazonaws.com/fast-ai-imageclas/{}.tgz"

# Shorter side of the stored pictures: folder in the archive, checksum.
SIZES = {
    "imagenette": {
        "160": ("imagenette2-160", "e793b78cc4c9e9a4ccc0c1155377a412"),
        "320": ("imagenette2-320", "3df6f0d01a2c9592104656642f5e78a3"),
        "full": ("imagenette2", "fe2fc210e6bb7c5664d602c3cd71e612"),
    },
    "imagewoof": {
        "160": ("imagewoof2-160", "3d200a7be99704a0d7509be2a9fbfe15"),
        "320": ("imagewoof2-320", "0f46d997ec2264e97609196c95897a44"),
        "full": ("imagewoof2", "9aafe18bcdb1632c4249a76c458465ba"),
    },
}

CLASS_NAMES = {
    "imagenette": {
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
    },
    "imagewoof": {
        "n02086240": "Shih-Tzu",
        "n02087394": "Rhodesian ridgeback",
        "n02088364": "beagle",
        "n02089973": "English foxhound",
        "n02093754": "Border terrier",
        "n02096294": "Australian terrier",
        "n02099601": "golden retriever",
        "n02105641": "Old English sheepdog",
        "n02111889": "Samoyed",
        "n02115641": "dingo",
    },
}


class Imagenette:
    """Of Imagenette 9,469 training pictures and 3,925 under ``val``; of Imagewoof 9,025 and 3,929.

    ``root`` is the folder of the archive, where it is unpacked too, or the unpacked folder itself;
    ``None``: ``data_dir``. ``url`` is the place of the archive; ``None``: the authors' own.
    ``size`` is one of :data:`SIZES`; ``None``: 160.
    """

    options = FILES | ARCHIVE | {"size"}

    def __init__(self, settings: DataSettings, data_dir: Path):
        self.name = settings.name
        self.root, self.unpacked = archive_root(settings, data_dir)
        self.folder, self.md5 = SIZES[settings.name][str(settings.size or 160)]
        self.class_names = CLASS_NAMES[settings.name]
        self.url = settings.url or URL.format(self.folder)

    def prepare(self) -> None:
        """Download and unpack the archive if its folder is missing."""
        if not self._pictures().is_dir():
            archive = fetch([self.url], self.root / f"{self.folder}.tgz", self.md5)
            extract(archive, self.folder, self.root)

    def load(self) -> Labelled:
        """List the pictures.

        Raises:
            UserError: if they are those of another data set.
        """
        found = list_folder(self._pictures(), self.class_names)
        if odd := set(found.class_names) - set(self.class_names.values()):
            raise UserError(
                f"{self._pictures()} is not {self.name}, which has no class {min(odd)!r}; "
                "data=folder trains on pictures of any classes"
            )
        return found

    def _pictures(self) -> Path:
        return self.root if self.unpacked else self.root / self.folder
