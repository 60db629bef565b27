"""Faults of a data set: unreadable, repeated and odd pictures, and classes with few."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image
from pydantic import JsonValue
from torch.utils.data import Dataset

from dwsep_zoo.data.decode import WHITE, as_rgb, no_warnings
from dwsep_zoo.data.module import ImageData
from dwsep_zoo.data.pictures import CHUNK, in_processes
from dwsep_zoo.data.splits import SPLITS, Images, Labelled, fingerprint
from dwsep_zoo.data.store import Store, new_checksum
from dwsep_zoo.errors import UserError

SIDE = 8  # of the hash of a picture, in bits
THUMB = 16  # side of the small grey pictures that are compared
MOST_BITS = 4
"""Bits in which the hashes of two near-duplicates differ."""
MOST_GREYS = 6.0
"""Mean difference of their small grey pictures, of 0-255, after their means are made equal."""
FLAT = 4.0
"""A deviation of grey values below which a picture shows nothing that could be compared."""
THIN = 8
"""Longer side / shorter side of an odd picture."""
ODD_SHARE = 0.05
"""A mode that fewer pictures than this part have is odd."""


@dataclass(frozen=True)
class Seen:
    """What is known of a picture after it was read.

    Attributes:
        checksum: of its file or its pixels.
        bits: one for each pair of neighbours in its rows: whether it becomes brighter.
        thumb: (256,) small and grey.
    """

    width: int
    height: int
    mode: str
    checksum: bytes
    bits: int
    thumb: np.ndarray


@dataclass(frozen=True)
class Check:
    """What was found; pictures are ``split/name``.

    Attributes:
        pictures: number of images.
        fingerprint: as a run records it, if all can be read.
        unreadable: reason by picture.
        classes: images of each class in each split.
        same: groups of pictures with the same bytes.
        near: groups of pictures that look the same, beside those.
        across: of these groups, how many reach over two splits.
        labels: of these groups, how many have two labels.
        sizes: number of pictures of each ``width x height``, the most frequent.
        modes: number of pictures of each mode of Pillow.
        odd: pictures that are extremely long, of a rare mode, or without any pattern.
    """

    pictures: int
    fingerprint: str | None
    unreadable: dict[str, str]
    classes: dict[str, dict[str, int]]
    same: list[list[str]]
    near: list[list[str]]
    across: dict[str, int]
    labels: dict[str, int]
    sizes: dict[str, int]
    modes: dict[str, int]
    odd: dict[str, str]

    def plain(self) -> dict[str, JsonValue]:
        """The findings as JSON would hold them."""
        return asdict(self)


def check_data(data: ImageData) -> Check:
    """Read every picture of a data set and compare all.

    Raises:
        UserError: for a data set that cannot be listed, or that its server does not send.
    """
    data.prepare_data()
    given = data.choose()
    parts = {s: i for s, i in given.splits.items() if s in SPLITS}
    if parts["val"] is parts["test"]:
        del parts["val"]
    if parts.get("train") is parts["test"]:
        del parts["train"]
    seen: dict[str, Seen] = {}
    unreadable: dict[str, str] = {}
    labels: dict[str, int] = {}
    for split, images in parts.items():
        keys = [f"{split}/{name}" for name in images.names]
        labels.update(zip(keys, images.labels.tolist(), strict=True))
        for key, found in zip(keys, _look(given.store, images), strict=True):
            if isinstance(found, UserError):
                raise found
            if isinstance(found, Seen):
                seen[key] = found
            else:
                unreadable[key] = found
    same, near = _same(seen), _near(seen)
    groups = {"same": same, "near": near}
    return Check(
        pictures=len(labels),
        fingerprint=None if unreadable else _fingerprint(given, parts, seen),
        unreadable=unreadable,
        classes={split: _counts(given.class_names, images) for split, images in parts.items()},
        same=same,
        near=near,
        across={
            k: sum(len({n.split("/")[0] for n in g}) > 1 for g in v) for k, v in groups.items()
        },
        labels={k: sum(len({labels[n] for n in g}) > 1 for g in v) for k, v in groups.items()},
        sizes=dict(Counter(f"{one.width} x {one.height}" for one in seen.values()).most_common(20)),
        modes=dict(Counter(one.mode for one in seen.values()).most_common()),
        odd=_odd(seen),
    )


def _counts(class_names: Sequence[str], images: Images) -> dict[str, int]:
    counts = np.bincount(images.labels, minlength=len(class_names))
    return {name: int(count) for name, count in zip(class_names, counts, strict=True)}


def _fingerprint(given: Labelled, parts: Mapping[str, Images], seen: Mapping[str, Seen]) -> str:
    """That of a run with these splits."""
    if given.store is None:
        return fingerprint(given.class_names, given.splits, {})
    contents = {
        split: np.frombuffer(
            b"".join(seen[f"{split if split in parts else 'test'}/{n}"].checksum for n in i.names),
            dtype=np.uint8,
        )
        for split, i in given.splits.items()
    }
    return fingerprint(given.class_names, given.splits, contents)


def _look(store: Store | None, images: Images) -> Iterator[Seen | str | UserError]:
    """Each picture in order, or the reason why it cannot be read."""
    if images.pixels is not None:
        for pixels in images.pixels.numpy():
            array = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
            yield _seen(Image.fromarray(array), new_checksum(pixels.tobytes()).digest())
        return
    assert store is not None
    title = f"reading {len(images):,} pictures"
    for part in in_processes(_Looked(store, images.names), len(images), title, CHUNK * 1000):
        yield from part


class _Looked(Dataset["list[Seen | str] | list[UserError]"]):
    """Each :data:`CHUNK` pictures."""

    def __init__(self, store: Store, names: Sequence[str]):
        self.store, self.names = store, names

    def __len__(self) -> int:
        return -(-len(self.names) // CHUNK)

    def __getitem__(self, number: int) -> list[Seen | str] | list[UserError]:
        names = self.names[number * CHUNK : (number + 1) * CHUNK]
        try:
            store = self.store.ahead(names)
        except UserError as error:
            return [error] * len(names)
        with no_warnings():
            return [self._look(store, name) for name in names]

    def _look(self, store: Store, name: str) -> Seen | str:
        try:
            with store.opened(name) as image:
                return _seen(image, store.checksum(name), store.background)
        except UserError as error:
            return str(error)


def _seen(image: Image.Image, checksum: bytes, background: str = WHITE) -> Seen:
    mode = image.mode
    upright = as_rgb(image, background)
    grey = upright.convert("L")
    small = np.asarray(grey.resize((SIDE + 1, SIDE), Image.Resampling.BOX)).astype(int)
    brighter = (small[:, 1:] > small[:, :-1]).flatten()
    bits = int("".join("1" if one else "0" for one in brighter), 2)
    thumb = np.asarray(grey.resize((THUMB, THUMB), Image.Resampling.BOX)).flatten()
    return Seen(*upright.size, mode, checksum, bits, thumb)


def _same(seen: Mapping[str, Seen]) -> list[list[str]]:
    groups = defaultdict(list)
    for key, one in seen.items():
        groups[one.checksum].append(key)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def _near(seen: Mapping[str, Seen]) -> list[list[str]]:
    """Groups that look alike; of pictures with the same bytes, one stands for all."""
    shown = {one.checksum: key for key, one in reversed(list(seen.items()))}
    keys = [key for key in shown.values() if seen[key].thumb.std() >= FLAT]
    leader = {key: key for key in keys}

    def first(key: str) -> str:
        while leader[key] != key:
            key = leader[key]
        return key

    for one, other in _alike(keys, seen):
        leader[first(other)] = first(one)
    groups = defaultdict(list)
    for key in keys:
        groups[first(key)].append(key)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def _alike(keys: Sequence[str], seen: Mapping[str, Seen]) -> Iterator[tuple[str, str]]:
    """Pairs whose hashes and small pictures are nearly equal.

    Hashes that differ in at most 4 of 64 bits are equal in one of 5 parts.
    """
    bits = np.array([seen[key].bits for key in keys], dtype=np.uint64)
    parts = MOST_BITS + 1
    width = -(-SIDE * SIDE // parts)
    for part in range(parts):
        own = (bits >> np.uint64(part * width)) & np.uint64(2**width - 1)
        order = np.argsort(own, kind="stable")
        starts = np.flatnonzero(np.diff(own[order], prepend=own[order][:1] + np.uint64(1)))
        for group in np.split(order, starts[1:]):
            for place, i in enumerate(group[:-1]):
                others = group[place + 1 :]
                differ = np.unpackbits((bits[others] ^ bits[i])[:, None].view(np.uint8), axis=1)
                for j in others[differ.sum(1) <= MOST_BITS]:
                    if _difference(seen[keys[i]].thumb, seen[keys[j]].thumb) <= MOST_GREYS:
                        yield keys[i], keys[j]


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    difference = one.astype(float) - other
    return float(np.abs(difference - difference.mean()).mean())


def _odd(seen: Mapping[str, Seen]) -> dict[str, str]:
    modes = Counter(one.mode for one in seen.values())
    odd = {}
    for key, one in seen.items():
        reasons = []
        if max(one.width, one.height) >= THIN * min(one.width, one.height):
            reasons.append(f"{one.width} x {one.height} pixels")
        if modes[one.mode] < ODD_SHARE * len(seen):
            reasons.append(f"mode {one.mode}")
        if one.thumb.std() == 0:
            reasons.append("one colour")
        if reasons:
            odd[key] = ", ".join(reasons)
    return odd
