"""Shards: tar archives of pictures, whose index tells where each picture lies.

Every picture is read by itself from its place in a shard. Order, batches and resuming are therefore
those of single files, and no more is in memory than the batches and the index. The archives are
those of the library webdataset, a picture and its class by turns: ``000000012.jpg``,
``000000012.cls``. The index is ``index.json``, for people, and ``index.npz``, a row each picture.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from dwsep_zoo.data.remote import Part, Remote
from dwsep_zoo.data.splits import SPLITS, Images, Labelled
from dwsep_zoo.data.store import BYTES, Store, new_checksum, reason
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import atomic_write, sha256_of

FORMAT, VERSION = "dwsep_zoo shards", 1
INDEX, TABLE = "index.json", "index.npz"
PART = ".part"
"""Ends the name of a folder that is being packed."""


@dataclass(frozen=True)
class Shard:
    """An archive: its file's name, length in bytes, SHA-256, and number of pictures."""

    name: str
    bytes: int
    sha256: str
    pictures: int


@dataclass(frozen=True)
class Table:
    """A row for each picture, in the order of its split.

    Attributes:
        names: of the pictures.
        shard: (n,) int64, number of the archive.
        offset: (n,) int64, of the picture's first byte in it.
        length: (n,) int64, in bytes.
        checksum: (n, 16) uint8, of its bytes; ``None``: unknown.
    """

    names: list[str]
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    checksum: np.ndarray | None = None


class Shards(Store):
    """The pictures in archives.

    Args:
        root: folder of the archives.
        files: their names, by number.
        table: of the pictures.
        states: a text for each archive that changes with its content.
    """

    def __init__(self, root: Path, files: Sequence[str], table: Table, states: Sequence[str] = ()):
        super().__init__(root)
        self.files, self.table, self.states = files, table, states
        self.row = {name: i for i, name in enumerate(table.names)}

    def where(self, name: str) -> str:
        return f"{self.shard(name)}: {name}"

    def content(self, name: str) -> io.BytesIO:
        row, path, part = self.row[name], self.shard(name), self.part(name)
        found = self.bytes_of(part)
        if len(found) < part.length:
            raise UserError(f"cannot read {path}: it is cut off")
        known = self.table.checksum
        if known is not None and new_checksum(found).digest() != known[row].tobytes():
            raise UserError(
                f"{path} was changed after it was packed: the bytes of {name} have another checksum"
            )
        return io.BytesIO(found)

    def state(self, name: str) -> str:
        row = self.row[name]
        if not self.table.length[row]:
            raise UserError(f"cannot read the picture {self.where(name)}: it is empty")
        place = f"{self.table.offset[row]}\0{self.table.length[row]}"
        return f"{name}\0{place}\0{self.states[self.table.shard[row]]}"

    def recorded(self, names: Sequence[str]) -> np.ndarray | None:
        known = self.table.checksum
        return None if known is None else known[[self.row[name] for name in names]]

    def shard(self, name: str) -> str:
        """The place of a picture's archive."""
        return f"{self.root}/{self.part(name).name}"

    def part(self, name: str) -> Part:
        """The bytes of a picture in its archive."""
        row, table = self.row[name], self.table
        return Part(self.files[table.shard[row]], int(table.offset[row]), int(table.length[row]))

    def bytes_of(self, part: Part) -> bytes:
        """Read a part of an archive, or as much as there is of it; raises UserError."""
        path = self.root / part.name
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(part.first)
                return file.read(part.length)
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from error


class RemoteShards(Shards):
    """The pictures in archives on another server.

    Args:
        root: folder of the index on this machine.
        files: names of the archives.
        table: of the pictures.
        states: see :class:`Shards`.
        remote: has the archives.
    """

    def __init__(
        self, root: Path, files: Sequence[str], table: Table, states: Sequence[str], remote: Remote
    ):
        super().__init__(root, files, table, states)
        self.remote = remote
        self.at_hand: Mapping[Part, bytes] = {}

    def shard(self, name: str) -> str:
        return self.remote.place(self.part(name).name)

    def ahead(self, names: Sequence[str]) -> RemoteShards:
        found = copy(self)
        parts = [self.part(name) for name in names]
        found.at_hand = dict(zip(parts, self.remote.parts(parts), strict=True))
        return found

    def bytes_of(self, part: Part) -> bytes:
        return self.at_hand[part] if part in self.at_hand else self.remote.parts([part])[0]


def index_files(
    name: str, given: Labelled, table: Table, shards: Sequence[Shard], fingerprint: str
) -> dict[str, bytes]:
    """The content of both files of an index.

    Args:
        name: of the data set that was packed.
        given: its classes and splits.
        table: of the pictures of all splits, one after the other.
        shards: the archives.
        fingerprint: as a run on these data would record it.
    """
    assert table.checksum is not None
    file = io.BytesIO()
    np.savez_compressed(
        file,
        names=np.frombuffer("\0".join(table.names).encode("utf-8", "surrogateescape"), np.uint8),
        split=np.repeat(np.arange(len(SPLITS)), [len(given.splits.get(s, ())) for s in SPLITS]),
        label=np.concatenate([given.splits[s].labels for s in SPLITS if s in given.splits]),
        shard=table.shard,
        offset=table.offset,
        length=table.length,
        checksum=table.checksum,
    )
    about = {
        "format": FORMAT,
        "version": VERSION,
        "data": name,
        "pictures": len(table.names),
        "fingerprint": fingerprint,
        "class_names": given.class_names,
        "splits": {split: len(images) for split, images in given.splits.items()},
        "table": {"name": TABLE, "sha256": hashlib.sha256(file.getvalue()).hexdigest()},
        "shards": [asdict(shard) for shard in shards],
    }
    text = json.dumps(about, indent=1, ensure_ascii=False)
    return {TABLE: file.getvalue(), INDEX: text.encode("utf-8", "surrogateescape")}


def fetch_index(remote: Remote, root: Path) -> None:
    """Copy the index of archives on another server to a folder, or what is new of it.

    Raises:
        UserError: for an index or a folder that cannot be read or written, or a server that does
            not send parts of files.
    """
    remote.parts([Part(INDEX, 0, 1)])
    content = remote.whole(INDEX)
    about, _ = _about(content, remote.place(INDEX))
    wanted, table = about["table"]["sha256"], root / TABLE
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{INDEX}.lock"):
            if not table.exists() or sha256_of(table) != wanted:
                new = remote.whole(TABLE)
                if hashlib.sha256(new).hexdigest() != wanted:
                    raise UserError(
                        f"{remote.place(TABLE)} is damaged, or of other shards than {INDEX}"
                    )
                atomic_write(table, new)
            atomic_write(root / INDEX, content)
    except OSError as error:
        raise UserError(
            f"cannot write {root}: {reason(error)}; set paths.data_dir= to another place"
        ) from error


def read_shards(root: Path, remote: Remote | None = None) -> Labelled:
    """Read the index of a folder, and compare the archives' lengths with it.

    Args:
        root: the folder.
        remote: has the archives; ``None``: they are in the folder.

    Raises:
        UserError: naming the file: it is missing, damaged, cut off, or of another version.
    """
    try:
        content = (root / INDEX).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {root / INDEX}: {reason(error)}") from error
    about, shards = _about(content, str(root / INDEX))
    table, splits = _table(root, about["table"]["sha256"], len(about["class_names"]))
    if len(shards) <= table.shard.max(initial=-1):
        raise UserError(f"{root / INDEX} names {len(shards)} shards, {TABLE} has more")
    names = [shard.name for shard in shards]
    store: Shards
    if remote is None:
        times = [_time(root / shard.name, shard.bytes) for shard in shards]
        states = [f"{shard.sha256}\0{time}" for shard, time in zip(shards, times, strict=True)]
        store = Shards(root, names, table, states)
    else:
        remote.parts([Part(shard.name, shard.bytes - 1, 1) for shard in shards])  # their ends
        store = RemoteShards(root, names, table, [shard.sha256 for shard in shards], remote)
    return Labelled(about["class_names"], splits, store, packed=about["data"])


def _time(path: Path, length: int) -> int:
    """The time of a shard's last writing; raises UserError if it is of another length."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {reason(error)}") from error
    found = status.st_size
    if found < length:
        raise UserError(f"{path} is cut off: it has {found:,} of {length:,} bytes")
    if found > length:
        raise UserError(
            f"{path} was changed after it was packed: it has {found:,} bytes, not {length:,}"
        )
    return status.st_mtime_ns


def _about(content: bytes, path: str) -> tuple[dict[str, Any], list[Shard]]:
    """The content of ``index.json``, which came from this place."""
    try:
        about = json.loads(content.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{path} is not an index of shards that dwsep data pack wrote")
    if about.get("version") != VERSION:
        raise UserError(
            f"{path} is of version {about.get('version')!r}; this version of dwsep_zoo reads "
            f"{VERSION}: pack the pictures again"
        )
    try:
        names, _, _ = about["class_names"], about["data"], about["table"]["sha256"]
        shards = [Shard(**one) for one in about["shards"]]
        if not all(isinstance(name, str) for name in names):
            raise TypeError("class_names are not texts")
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error})") from error
    return about, shards


def _table(root: Path, sha256: str, num_classes: int) -> tuple[Table, dict[str, Images]]:
    """The content of ``index.npz``."""
    path = root / TABLE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} is damaged, or of other shards than {INDEX}")
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        rows = {key: found[key] for key in found.files}
    text = rows["names"].tobytes().decode("utf-8", "surrogateescape")
    names, labels = text.split("\0"), rows["label"].astype(np.int64)
    if labels.max() >= num_classes:
        raise UserError(f"{path} has the label {labels.max()}, {INDEX} names {num_classes} classes")
    splits = {}
    for number, split in enumerate(SPLITS):
        own = np.flatnonzero(rows["split"] == number)
        if len(own):
            splits[split] = Images([names[i] for i in own], labels[own])
    checksum = rows["checksum"].reshape(-1, BYTES)
    return Table(names, rows["shard"], rows["offset"], rows["length"], checksum), splits
