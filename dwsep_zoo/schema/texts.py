"""Texts of settings and options: words, and paths with ``~`` for the home folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from dwsep_zoo.errors import UserError

LONGEST_NAME = 200
"""Bytes of a folder's or file's name; systems take 255, and ``.part`` and the like are added."""


def _text(text: str) -> str:
    if not text.strip() or any(ord(char) < 32 for char in text):
        raise ValueError("must be text on one line, not empty")
    return text


def place(text: str) -> str:
    """A path with the home folder for a ``~`` at its beginning.

    Raises:
        ValueError: for a text that is no path, or with a ``~`` that stands for nothing.
    """
    path = os.path.expanduser(_text(text))
    parts = Path(path).parts
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        raise ValueError(f"must have names of at most {LONGEST_NAME} bytes")
    if path.startswith("~") or "~" in parts:
        raise ValueError("must be a path with ~ for the home folder, or without ~")
    return path


def checked_place(key: str, text: object) -> str:
    """The path that a text names; raises UserError with the key."""
    if not isinstance(text, str):
        raise UserError(f"{key} must be text; got {text!r}")
    try:
        return place(text)
    except ValueError as error:
        raise UserError(f"{key} {error}; got {text!r}") from None


def _name(text: str) -> str:
    if Path(place(text)).is_absolute() or ".." in Path(text).parts or text != text.strip():
        raise ValueError("must be the name of a folder")
    return text


def _colour(text: str) -> str:
    from PIL import ImageColor

    try:
        parts: tuple[int, ...] = ImageColor.getrgb(_text(text))
    except ValueError:
        parts = ()
    if len(parts) != 3:  # a transparent one has four
        raise ValueError("must be a colour, such as white, black or '#808080'")
    return f"#{bytes(parts).hex()}"


def has_secret(url: str) -> bool:
    """Whether a URL has a password or, over HTTP, a user name.

    Raises:
        ValueError: for a text that is no URL.
    """
    found = urlsplit(url)
    return found.password is not None or ("@" in found.netloc and found.scheme.startswith("http"))


def _address(text: str) -> str:
    try:
        secret = has_secret(_text(text))
    except ValueError as error:
        raise ValueError(f"must be an address ({error})") from error
    if secret:
        raise ValueError(
            "must be an address without user name and password, as every run records it"
        )
    return text


Text = Annotated[str, AfterValidator(_text)]
Address = Annotated[str, AfterValidator(_address)]
"""Of a server or a file on one."""
Place = Annotated[str, AfterValidator(place)]
FolderName = Annotated[str, AfterValidator(_name)]
Colour = Annotated[str, AfterValidator(_colour)]
"""``#rrggbb``, whatever it was called."""
