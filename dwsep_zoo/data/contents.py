"""Checksums of files' bytes, which are kept, so that the next run reads them no more.

A file counts as unchanged while its size and the nanosecond of its last writing are the same.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import PIL

from dwsep_zoo.data.decode import DECODING
from dwsep_zoo.data.pictures import problems
from dwsep_zoo.data.progress import progress
from dwsep_zoo.data.splits import Images, Labelled
from dwsep_zoo.data.store import BYTES, Store, new_checksum
from dwsep_zoo.errors import UserError
from dwsep_zoo.files import atomic_write
from dwsep_zoo.schema.process import cores

log = logging.getLogger("dwsep_zoo")

DECODER = f"{PIL.__version__}-{DECODING}"
"""Names the decoder of which it is known what it can read."""
AT_ONCE = 64  # files
KEPT_FROM = 1000  # files; fewer are read again as fast


@dataclass(frozen=True)
class Kept:
    """Places where something is kept about files; the first that can be written to is taken.

    Attributes:
        checksums: of their bytes.
        readable: checksums of those that :data:`DECODER` can decode; of packed ones, of their
            states.
    """

    checksums: Sequence[Path] = ()
    readable: Sequence[Path] = ()


def contents_of(
    store: Store, splits: Mapping[str, Images], kept: Kept, *, verify: bool = False
) -> dict[str, np.ndarray]:
    """(n, 16) uint8 for each split, see :func:`checksums`."""
    names = sorted({name for images in splits.values() for name in images.names})
    found = checksums(store, names, kept.checksums, verify=verify)
    number = {name: i for i, name in enumerate(names)}
    return {split: found[[number[n] for n in images.names]] for split, images in splits.items()}


def without_unreadable(given: Labelled, kept: Kept) -> tuple[Labelled, dict[str, str]]:
    """Leave out the pictures that cannot be read; returns the others, and the reasons.

    Raises:
        UserError: if a class of a split has none left.
    """
    assert given.store is not None
    skipped = unreadable(given.store, [n for p in given.splits.values() for n in p.names], kept)
    splits = {}
    for split, images in given.splits.items():
        good = [i for i, name in enumerate(images.names) if name not in skipped]
        splits[split] = images.take(np.array(good, dtype=int))
        if lost := set(images.labels.tolist()) - set(splits[split].labels.tolist()):
            label = min(lost)
            first = images.names[int(np.flatnonzero(images.labels == label)[0])]
            raise UserError(
                f"no picture of the class {given.class_names[label]!r} in {split} can be read; "
                f"{skipped[first]}"
            )
    if skipped:
        log.warning(
            "%d of %d pictures are left out, as they cannot be read; the first: %s",
            len(skipped),
            sum(len(images) for images in given.splits.values()),
            next(iter(skipped.values())),
        )
    return replace(given, splits=splits), skipped


def unreadable(store: Store, names: Sequence[str], kept: Kept) -> dict[str, str]:
    """Why each picture that cannot be decoded cannot; those that once could are not tried again."""
    reasons = _failures(store.state, names)
    left = [name for name in names if name not in reasons]
    try:
        found = checksums(store, left, kept.checksums)
    except UserError:
        reasons |= _failures(store.checksum, left)
        left = [name for name in left if name not in reasons]
        found = checksums(store, left, kept.checksums)
    if store.recorded(left) is None:
        keys = [row.tobytes() for row in found]
    else:  # checksums of the bytes that were packed, not of those that are there now
        keys = [_state(store, name) for name in left]
    known = set(load_rows(kept.readable, BYTES))
    wanted = {name: key for name, key in zip(left, keys, strict=True) if key not in known}
    reasons.update(problems(store, list(wanted)))
    good = {key for name, key in wanted.items() if name not in reasons}
    if good and len(left) >= KEPT_FROM:
        save_rows(kept.readable, sorted(known | good))
    return {name: reasons[name] for name in names if name in reasons}


def _failures(read: Callable[[str], object], names: Sequence[str]) -> dict[str, str]:
    """The names for which a function raises, and why."""
    reasons = {}
    for name in names:
        try:
            read(name)
        except UserError as error:
            reasons[name] = str(error)
    return reasons


def checksums(
    store: Store, names: Sequence[str], kept: Sequence[Path] = (), *, verify: bool = False
) -> np.ndarray:
    """(n, 16) uint8: a checksum of the bytes of each file.

    Args:
        store: has the pictures.
        names: of the files.
        kept: places where checksums are kept; the first that can be written to is taken.
        verify: read all files, also those that seem unchanged.

    Raises:
        UserError: naming the path of an empty or missing file.
    """
    if not verify and (recorded := store.recorded(names)) is not None:
        return recorded
    states = [_state(store, name) for name in names]
    known = {} if verify else {row[:BYTES]: row[BYTES:] for row in load_rows(kept, 2 * BYTES)}
    wanted = [i for i, state in enumerate(states) if state not in known]
    with ThreadPoolExecutor(min(8, len(cores()))) as pool:
        groups = [
            [names[i] for i in wanted[n : n + AT_ONCE]] for n in range(0, len(wanted), AT_ONCE)
        ]
        found_in = pool.map(partial(_checksums, store), groups)
        if len(wanted) < KEPT_FROM:
            new = list(chain.from_iterable(found_in))
        else:
            new = []
            with progress(f"reading {len(wanted):,} files for their checksum", len(wanted)) as done:
                for group in found_in:
                    new += group
                    done(len(group))
    known.update((states[i], checksum) for i, checksum in zip(wanted, new, strict=True))
    found = [known[state] for state in states]
    if wanted and len(names) >= KEPT_FROM:
        save_rows(kept, [key + value for key, value in known.items()])
    return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, BYTES)


def _checksums(store: Store, names: Sequence[str]) -> list[bytes]:
    store = store.ahead(names)
    return [store.checksum(name) for name in names]


def load_rows(places: Sequence[Path], width: int) -> list[bytes]:
    """Rows of bytes from the first place that has some."""
    for path in places:
        with suppress(OSError, ValueError, EOFError):
            rows = np.load(path, allow_pickle=False)
            if rows.dtype == np.uint8 and rows.ndim == 2 and rows.shape[1] == width:
                return [row.tobytes() for row in rows]
    return []


def save_rows(places: Sequence[Path], rows: Sequence[bytes]) -> None:
    """Keep rows of bytes at the first place that can be written to, if there is one."""
    file = io.BytesIO()
    np.save(file, np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1))
    for path in places:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, file.getvalue())
            return


def _state(store: Store, name: str) -> bytes:
    return new_checksum(store.state(name).encode("utf-8", "surrogateescape")).digest()
