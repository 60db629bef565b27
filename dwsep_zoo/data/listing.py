"""Names of files and folders: which are pictures, which are splits, and which are neither."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NoReturn

from PIL import Image

from dwsep_zoo.errors import UserError

log = logging.getLogger("dwsep_zoo")

MOST_OTHERS = 100_000
"""A folder with more entries than this that are not pictures is not a folder of pictures."""
NO_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats of Pillow for which it needs another program."""
SYSTEM = frozenset(
    {
        *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "__macosx"),
        *("lost+found", "system volume information", "__pycache__", "thumbs.db", "desktop.ini"),
    }
)
"""Folders and files of systems and programs, in lower case."""

_AROUND = r"(?:seg|the|my|images?|imgs?|pictures?|photos?|data|dataset|sets?|split|folder)*"
_SPLITS = {
    "train": re.compile(f"{_AROUND}(?:train|trn|training){_AROUND}"),
    "val": re.compile(f"{_AROUND}(?:val|valid|validate|validation|dev){_AROUND}"),
    "test": re.compile(f"{_AROUND}(?:test|tst|testing){_AROUND}"),
}


@dataclass(frozen=True)
class Found:
    """The pictures below a folder, and how many other files of each suffix there are."""

    names: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


@cache
def suffixes() -> tuple[str, ...]:
    """Those of all formats that Pillow reads by itself, in lower case."""
    Image.init()
    readable = set(Image.OPEN) - NO_PICTURES
    known = Image.registered_extensions().items()
    return tuple(sorted(suffix for suffix, kind in known if kind in readable))


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to a system or a program."""
    return name.startswith(".") or name.casefold() in SYSTEM


def split_of(name: str) -> str | None:
    """The split that a name stands for, such as ``train`` for ``seg_train`` or ``Training-Set``."""
    word = re.sub(r"[\W_]+", "", name.casefold())
    for split, pattern in _SPLITS.items():
        if pattern.fullmatch(word):
            return split
    return None


def split_in(path: str) -> str:
    """The split that a word of a path names, the last one first; ``train`` if none does."""
    words = re.split(r"[^a-zA-Z]+", path)
    return next(filter(None, map(split_of, reversed(words))), "train")


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, but hidden ones and links to what is around it."""
    try:
        return sorted(
            path.name
            for path in folder.iterdir()
            if path.is_dir() and not is_hidden(path.name) and not leads_back(path, folder)
        )
    except OSError as error:
        raise UserError(f"cannot list {error.filename or folder}: {error.strerror}") from error


def find_pictures(folder: Path) -> Found:
    """List the pictures in a folder and its subfolders, as sorted relative paths, but hidden ones.

    Links to folders are followed; a folder counts once, and a link back to one around it not at
    all.

    Raises:
        UserError: for a folder that cannot be listed, one of the kernel's, such as /proc, and one
            with very many other files.
    """
    found = Found()
    entries, seen = 0, {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, onerror=_not_listed, followlinks=True):
        if os.stat(parent).st_dev in _kernel_devices():
            raise UserError(f"{parent} belongs to the operating system and has no pictures")
        inside = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders)}
        folders.clear()
        for name, real in inside.items():
            if not (is_hidden(name) or real in seen or leads_back(Path(real), folder)):
                seen.add(real)
                folders.append(name)
        pictures = sort_out(files, found.others)
        inner = Path(parent).relative_to(folder).as_posix()
        found.names.extend(pictures if inner == "." else [f"{inner}/{name}" for name in pictures])
        entries += len(folders) + len(files) - len(pictures)
        if entries > MOST_OTHERS and entries > 10 * len(found.names):
            raise UserError(
                f"{folder} has more than {MOST_OTHERS:,} files and folders that are not pictures; "
                "data.root= must be a folder of pictures"
            )
    found.names.sort()
    return found


def sort_out(files: Sequence[str], others: Counter[str]) -> list[str]:
    """The pictures among files; ``others`` counts the rest, but hidden ones, by suffix."""
    seen = [name for name in files if not is_hidden(name)]
    pictures = [name for name in seen if name.lower().endswith(suffixes())]
    others.update(Path(n).suffix.lower() for n in seen if not n.lower().endswith(suffixes()))
    return pictures


def say_others(where: Path, others: Counter[str]) -> None:
    """Warn of files that are left out."""
    if others:
        kinds = ", ".join(f"{n:,} {suffix or 'without'}" for suffix, n in others.most_common(5))
        log.warning(
            "%s: files left out, as their suffix is not that of a picture: %d (%s)",
            where,
            others.total(),
            kinds,
        )


def leads_back(link: Path, folder: Path) -> bool:
    """Whether a link leads to ``folder`` or to one around it."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


def _not_listed(error: OSError) -> NoReturn:
    raise UserError(f"cannot list {error.filename}: {error.strerror}") from error


@cache
def _kernel_devices() -> set[int]:
    """Devices of file systems that the kernel makes up, whose listing may never end."""
    made_up = {os.stat(p).st_dev for p in ("/proc", "/sys", "/dev") if os.path.isdir(p)}
    return made_up - {os.stat("/").st_dev}
