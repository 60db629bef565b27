"""Packing the pictures of a data set into shards."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dwsep_zoo.data.contents import without_unreadable
from dwsep_zoo.data.module import ImageData
from dwsep_zoo.data.progress import progress
from dwsep_zoo.data.shards import PART, Shard, Table, index_files
from dwsep_zoo.data.splits import SPLITS, Images, Labelled, fingerprint
from dwsep_zoo.data.store import BYTES, Store, new_checksum, reason
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import HashedFile, atomic_write, sync_folder

AHEAD = 64  # pictures that are read at the same time


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        fingerprint: as a run on the pictures or on the shards records it.
    """

    pictures: int
    shards: int
    num_bytes: int
    fingerprint: str
    skipped: dict[str, str] = field(default_factory=dict)


def pack(data: ImageData, to: Path, shard_bytes: int) -> Packed:
    """Write all pictures of a data set into shards, which ``data=webdataset`` reads.

    Their bytes stay as they are. A shard has pictures of one split, in an order drawn by the hash
    of their names, so that tools that read shards from the beginning meet all classes. The folder
    has its name when it is complete, and another one before.

    Args:
        data: the data set, not yet set up.
        to: the new folder.
        shard_bytes: a shard ends when it is as long.

    Raises:
        UserError: for images that are not files, a picture that cannot be read, a folder that
            exists, or a full disk.
    """
    part = to.with_name(to.name + PART)
    _check_new(to, part)
    given, skipped = _given(data)
    assert given.store is not None
    if to.resolve().is_relative_to(given.store.root.resolve()):
        raise UserError(
            f"to={to} is among the pictures of {given.store.root}; choose a folder outside"
        )
    _begin(to, part)
    try:
        shards, table = _write(part, given, shard_bytes)
        mark = _fingerprint(data, given, table)
        for name, content in index_files(
            given.packed or data.settings.name, given, table, shards, mark
        ).items():
            atomic_write(part / name, content)
        os.rename(part, to)
        sync_folder(to.parent)
    except OSError as error:
        raise _not_written(to, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Packed(
        len(table.names), len(shards), sum(shard.bytes for shard in shards), mark, skipped
    )


def _given(data: ImageData) -> tuple[Labelled, dict[str, str]]:
    """All images of the set, and why some are left out."""
    subset = data.settings.subset
    if subset.images_per_class is not None or subset.fraction is not None:
        raise UserError(
            "data.subset.images_per_class and data.subset.fraction are chosen when a network is "
            "trained on the shards, not when they are packed"
        )
    data.prepare_data()
    given = data.load()
    if given.store is None:
        raise UserError(f"data={data.name} is in memory as a whole and needs no shards")
    if data.settings.on_error == "skip":
        return without_unreadable(given, data.kept(given.store.root))
    return given, {}


def _check_new(to: Path, part: Path) -> None:
    if to.exists() or to.is_symlink():
        raise UserError(f"to={to} exists already; choose another folder or remove it")
    if part.exists():
        raise UserError(
            f"{part} is left of a packing that was cut off, or another process is packing; remove "
            "it or choose another folder"
        )


def _begin(to: Path, part: Path) -> None:
    """Make the folder of this packing; another may have begun while the pictures were listed."""
    _check_new(to, part)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise _not_written(to, error) from error


def _not_written(to: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write {error.filename or to}: {reason(error)}; nothing is left of it, to= names "
        "another place"
    )


def _write(folder: Path, given: Labelled, shard_bytes: int) -> tuple[list[Shard], Table]:
    """Write the shards of all splits."""
    parts = [(split, given.splits[split]) for split in SPLITS if split in given.splits]
    names = [name for _, images in parts for name in images.names]
    shard, offset, length = np.zeros((3, len(names)), dtype=np.int64)
    checksum = np.zeros((len(names), BYTES), dtype=np.uint8)
    table = Table(names, shard, offset, length, checksum)
    shards: list[Shard] = []
    first = 0  # row of the split
    assert given.store is not None
    with progress(f"packing {len(names):,} pictures", len(names)) as advance:
        for split, images in parts:
            pictures = _pictures(given.store, images, first, advance)
            number = 0
            while (picture := next(pictures, None)) is not None:
                path = folder / f"{split}-{number:06d}.tar"
                shards.append(
                    _write_shard(path, chain([picture], pictures), len(shards), table, shard_bytes)
                )
                number += 1
            first += len(images)
    return shards, table


class _Picture(NamedTuple):
    """A picture to be written: its row in the table, the end of its name, its label and bytes."""

    row: int
    suffix: str
    label: int
    content: bytes


def _pictures(
    store: Store, images: Images, first: int, advance: Callable[[int], None]
) -> Iterator[_Picture]:
    """The pictures of a split in the order in which they are written, some read ahead."""
    order = sorted(range(len(images)), key=lambda i: _hash(images.names[i]))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(order), AHEAD):
            part = order[start : start + AHEAD]
            names = [images.names[i] for i in part]
            found = pool.map(store.ahead(names).all_of, names)
            for i, content in zip(part, found, strict=True):
                suffix = Path(images.names[i]).suffix.lower() or _suffix(content)
                yield _Picture(first + i, suffix, int(images.labels[i]), content)
                advance(1)


def _write_shard(
    path: Path, pictures: Iterable[_Picture], number: int, table: Table, shard_bytes: int
) -> Shard:
    """Write pictures until the shard is long enough, and their places into the table."""
    count = 0
    assert table.checksum is not None
    with path.open("wb") as raw:
        file = HashedFile(raw)
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as archive:  # type: ignore[call-overload]
            for row, suffix, label, content in pictures:
                offset = archive.offset + tarfile.BLOCKSIZE  # behind a header
                for ending, data in ((suffix, content), (".cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{row:09d}{ending}")
                    member.size = len(data)
                    archive.addfile(member, BytesIO(data))
                table.shard[row], table.offset[row], table.length[row] = (
                    number,
                    offset,
                    len(content),
                )
                table.checksum[row] = np.frombuffer(new_checksum(content).digest(), np.uint8)
                count += 1
                if archive.offset >= shard_bytes:
                    break
        raw.flush()
        os.fsync(raw.fileno())
    return Shard(path.name, path.stat().st_size, file.digest.hexdigest(), count)


def _fingerprint(data: ImageData, given: Labelled, table: Table) -> str:
    """That of a run on these pictures."""
    assert table.checksum is not None
    row = {name: i for i, name in enumerate(table.names)}
    splits = data.split(given)
    contents = {s: table.checksum[[row[n] for n in i.names]] for s, i in splits.items()}
    return fingerprint(given.class_names, splits, contents)


def _suffix(content: bytes) -> str:
    """The usual ending of a picture whose name has none."""
    with suppress(OSError), Image.open(BytesIO(content)) as image:
        return f".{(image.format or 'img').lower()}"
    return ".img"


def _hash(name: str) -> bytes:
    return new_checksum(name.encode("utf-8", "surrogateescape")).digest()
