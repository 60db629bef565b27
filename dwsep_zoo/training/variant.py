"""Work that the runs of one variant in a sweep share: they differ in nothing but the seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from dwsep_zoo.errors import UserError
from dwsep_zoo.files import atomic_write, is_sweep
from dwsep_zoo.schema.settings import Settings

# Chance, places, words and measurements do not make another variant.
_NOT_THE_VARIANT = {"seed", "tags", "paths", "resume", "ckpt_path", "profile", "logger", "test"}


def shared(
    what: str, settings: Settings, folder: Path, make: Callable[[], dict[str, JsonValue]]
) -> tuple[dict[str, JsonValue], bool]:
    """Make something for a variant, or read it if an earlier run of the sweep made it.

    Args:
        what: a word for the file's name.
        settings: those of the run.
        folder: the run's.
        make: makes plain data.

    Returns:
        The data, and whether it was made now.
    """
    variant = settings.model_dump(mode="json", exclude=_NOT_THE_VARIANT)
    key = hashlib.sha256(json.dumps(variant, sort_keys=True).encode()).hexdigest()
    file = (folder.parent if is_sweep(folder.parent) else folder) / f"{what}-{key[:12]}.json"
    if file.is_file():
        return _read(file), False
    made = make()
    if file.is_file():  # another process of the sweep was quicker
        return _read(file), False
    atomic_write(file, json.dumps(made, indent=2) + "\n")
    return made, True


def _read(file: Path) -> dict[str, JsonValue]:
    try:
        return json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}; remove it to make it again") from error
