"""Shards of pictures: those of ``dwsep data pack``, and any tar archives in webdataset's form."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from dwsep_zoo.data.listing import is_hidden, split_in, suffixes
from dwsep_zoo.data.remote import Remote, is_remote
from dwsep_zoo.data.rows import Row, labelled
from dwsep_zoo.data.shards import INDEX, PART, Shards, Table, fetch_index, read_shards
from dwsep_zoo.data.source import FILES, existing_root
from dwsep_zoo.data.splits import Labelled
from dwsep_zoo.data.store import reason
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.data_settings import DataSettings

LABELS = (".cls", ".json")
KEYS = ("cls", "label", "class", "class_id")
"""Keys of a class in a sample's .json."""


class WebDataset:
    """The shards in the folder ``data.root``, or at its URL.

    Those of ``dwsep data pack`` have an index. Others are read once for one: pictures beside files
    ``.cls`` or ``.json`` of the same name with their class. The name of an archive or of its folder
    tells the split, such as ``imagenet-val-0012.tar``; others are of ``train``. At a URL there has
    to be an index, which is copied to a folder below ``paths.data_dir``.
    """

    options = FILES

    def __init__(self, settings: DataSettings, data_dir: Path):
        self.remote = None
        if settings.root is not None and is_remote(settings.root):
            self.remote = Remote(settings.root)
            key = hashlib.sha256(self.remote.url.encode()).hexdigest()[:8]
            self.root = data_dir / f"{settings.name}-{key}"
            return
        root = existing_root(settings)
        if root is None:
            raise UserError(f"data={settings.name} needs data.root=, the folder of the shards")
        if root.name.endswith(PART):
            raise UserError(f"data.root={settings.root}: its packing has not ended")
        self.root = root

    def prepare(self) -> None:
        """Copy the index, if it is at a URL."""
        if self.remote:
            fetch_index(self.remote, self.root)

    def load(self) -> Labelled:
        """Read the index, or make one."""
        if self.remote:
            return read_shards(self.root, self.remote)
        return read_shards(self.root) if (self.root / INDEX).exists() else _scan(self.root)


def _scan(root: Path) -> Labelled:
    """List the pictures of archives without an index.

    Raises:
        UserError: naming the archive: it cannot be read, is cut off, or has a picture without a
            class.
    """
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tar*"))
    files = [name for name in found if name.endswith(".tar") and not is_hidden(Path(name).name)]
    if not files:
        packed = [name for name in found if not name.endswith(".part")]
        raise UserError(
            f"{root} has no shards, *.tar, but {packed[0]}: compressed archives have to be unpacked"
            if packed
            else f"{root} has no shards, *.tar; dwsep data pack data=NAME to=FOLDER makes some"
        )
    rows: list[Row] = []
    places: list[tuple[int, int, int]] = []
    for number, name in enumerate(files):
        split = split_in(name)
        for member, label, offset, length in _members(root / name):
            rows.append(Row(f"{name}/{member}", label, split, f"{root / name}: {member}"))
            places.append((number, offset, length))
    if not rows:
        raise UserError(
            f"{root} has no pictures in its {len(files)} shards, such as 0001.jpg with 0001.cls"
        )
    shard, offset, length = np.array(places, dtype=np.int64).T
    states = [_state(root / name) for name in files]
    store = Shards(root, files, Table([row.name for row in rows], shard, offset, length), states)
    return labelled(root, rows, store)


def _state(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size}\0{found.st_mtime_ns}"


def _members(path: Path) -> Iterator[tuple[str, str, int, int]]:
    """The name of each picture, its class, its first byte and its length."""
    pictures: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isfile() or is_hidden(name.name):
                    continue
                # webdataset's rule: a sample is what is alike up to the first dot of the name.
                stem, dot, suffix = name.name.partition(".")
                key, suffix = f"{name.parent}/{stem}", f"{dot}{suffix}".lower()
                if suffix in LABELS:
                    if (label := _label(archive, member, suffix)) is not None:
                        labels[key] = label
                elif suffix.endswith(suffixes()):
                    other = pictures.get(key, member)
                    if other.name != member.name:
                        raise UserError(
                            f"{path}: the sample {key.removeprefix('./')} has two pictures, "
                            f"{other.name} and {member.name}; leave one of them out"
                        )
                    pictures[key] = member
            end = archive.offset
        if os.stat(path).st_size < end + tarfile.BLOCKSIZE:
            raise UserError(f"{path} is cut off: it has no end")
    except (OSError, tarfile.TarError, ValueError) as error:
        shown = reason(error) if isinstance(error, OSError) else error
        raise UserError(f"cannot read the shard {path}: {shown}") from error
    for key, member in pictures.items():
        if key not in labels:
            raise UserError(
                f"{path}: {member.name} has no class; {' or '.join(LABELS)} beside it must have it"
            )
        yield member.name, labels[key], member.offset_data, member.size


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> str | None:
    """The class in a file beside a picture, if it has one."""
    file = archive.extractfile(member)
    assert file is not None
    text = file.read().decode("utf-8", "replace").strip()
    if suffix == ".json":
        values = json.loads(text)
        known = [values[key] for key in KEYS if key in values] if isinstance(values, dict) else []
        text = str(known[0]) if known else ""
    return text or None
