"""Texts of settings and options: words, and paths with ``~`` for the home folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


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
    if path.startswith("~") or "~" in Path(path).parts:
        raise ValueError("must be a path with ~ for the home folder, or without ~")
    return path


def _name(text: str) -> str:
    if Path(place(text)).is_absolute() or ".." in Path(text).parts or text != text.strip():
        raise ValueError("must be the name of a folder")
    return text


Text = Annotated[str, AfterValidator(_text)]
Place = Annotated[str, AfterValidator(place)]
FolderName = Annotated[str, AfterValidator(_name)]
