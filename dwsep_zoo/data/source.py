"""Where images come from, and which settings each data set takes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from dwsep_zoo.data.remote import is_remote
from dwsep_zoo.data.splits import Labelled
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.data_settings import AugmentSettings, DataSettings, SubsetSettings
from dwsep_zoo.schema.parse import nested_model


def _keys(kind: type[BaseModel], *left_out: str, prefix: str = "") -> frozenset[str]:
    """The keys of settings, those of groups by their dotted names."""
    found: set[str] = set()
    for key, field in kind.model_fields.items():
        if key not in left_out:
            inner = nested_model(field.annotation)
            found |= _keys(inner, prefix=f"{prefix}{key}.") if inner else {f"{prefix}{key}"}
    return frozenset(found)


CROP_FLIP = _keys(AugmentSettings, "scale", "ratio", "interpolation", prefix="augment.")
"""Keys for images that live in memory, see :class:`dwsep_zoo.data.augment.CropFlip`."""
FOLDERS = frozenset({"folders.train", "folders.val", "folders.test"})
CSV = frozenset({"csv", "columns.path", "columns.label", "columns.split"})
HF = frozenset({"hf", "columns.path", "columns.label"})
ARCHIVE = frozenset({"root", "url"})
COMMON = _keys(SubsetSettings, prefix="subset.") | {
    *("name", "batch_size", "val_fraction", "split_seed", "sampler"),
}
"""Keys that every data set takes."""
FILES = _keys(
    DataSettings, "url", "size", "folders", "csv", "hf", "columns", "corruption", "severity"
)
"""Keys for images that are files of pictures."""


class Source(Protocol):
    """The images of a data set."""

    def prepare(self) -> None:
        """Download missing files. One process of a machine calls it."""

    def load(self) -> Labelled:
        """Return the images, or their file names."""


class DataSet(Protocol):
    """A class of sources: called with the settings, it makes the source.

    Attributes:
        options: keys that it takes besides :data:`COMMON`.
    """

    options: frozenset[str]

    def __call__(self, settings: DataSettings, data_dir: Path) -> Source:
        """Make the source; it reads and downloads nothing yet."""


def check_options(settings: DataSettings, options: frozenset[str]) -> None:
    """Raises UserError for a key that is set but has no effect on this data set."""
    for key, value in _leaves(settings):
        if value is not None and key not in options:
            near = sorted(
                sorted(options - COMMON),
                key=lambda option: SequenceMatcher(None, key, option).ratio(),
                reverse=True,
            )
            shown = value if isinstance(value, str) else json.dumps(value)
            raise UserError(
                f"data.{key}={shown} has no effect on data={settings.name}; "
                f"it takes {', '.join(near)}"
            )


def archive_root(settings: DataSettings, data_dir: Path) -> tuple[Path, bool]:
    """The folder of an archive, and whether it is the unpacked folder itself that the user names.

    ``data_dir`` is that of all archives; what lies there under ``train`` is of another set.
    """
    given = existing_root(settings)
    return given or data_dir, given is not None and (given / "train").is_dir()


def existing_root(settings: DataSettings) -> Path | None:
    """The folder ``data.root``, or ``None`` if it is not set.

    Raises:
        UserError: if there is no such folder.
    """
    if settings.root is None:
        return None
    if is_remote(settings.root):
        raise UserError(
            f"data.root={settings.root}: data={settings.name} reads folders of this machine only; "
            "data=webdataset reads packed pictures from other servers"
        )
    root = Path(os.path.expanduser(settings.root))
    if not os.path.isdir(root):
        raise UserError(f"data.root={settings.root}: there is no such folder")
    return root


def _leaves(settings: DataSettings) -> Iterator[tuple[str, object]]:
    """Every key below ``data`` with its value, groups by their dotted names."""
    for key, value in settings.plain().items():
        if isinstance(value, dict):
            yield from ((f"{key}.{part}", inner) for part, inner in value.items())
        else:
            yield key, value
