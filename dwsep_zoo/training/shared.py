"""What the runs of a sweep that differ in nothing but the seed have in common."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# The seed decides about chance, these about places, words and measurements.
_NOT_THE_VARIANT = ("seed", "tags", "paths", "resume", "ckpt_path", "profile", "logger", "test")


def shared(
    what: str, cfg: Mapping[str, Any], folder: Path, make: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """Make something for a variant, or read what an earlier run of the sweep made for it.

    Args:
        what: a word for the file's name.
        cfg: the configuration of the run.
        folder: of the run.
        make: makes plain data.

    Returns:
        The data, and whether it was made now.
    """
    variant = {key: value for key, value in cfg.items() if key not in _NOT_THE_VARIANT}
    key = hashlib.sha256(json.dumps(variant, sort_keys=True, default=str).encode()).hexdigest()
    # Hydra writes multirun.yaml into the folder of a sweep.
    home = folder.parent if (folder.parent / "multirun.yaml").is_file() else folder
    file = home / f"{what}-{key[:12]}.json"
    if file.is_file():
        return json.loads(file.read_text()), False
    made = make()
    new = file.with_suffix(".new")
    new.write_text(json.dumps(made, indent=2) + "\n")
    os.replace(new, file)
    return made, True
