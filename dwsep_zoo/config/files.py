"""The YAML files: ours, and the user's own, which are checked before Hydra reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra

from dwsep_zoo.errors import UserError

GLOBAL_GROUPS = ("experiment", "debug")
"""Their files set keys of all groups and begin with ``# @package _global_``."""


def config_dir() -> Path:
    """The folder of YAML files: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


@contextmanager
def configs() -> Iterator[ConfigLoader]:
    """Hydra, set up for the YAML files."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def groups_with_names() -> dict[str, list[str]]:
    """The groups of the configuration and the names that each has."""
    with configs() as loader:
        found = {group: loader.get_group_options(group) for group in loader.list_groups("")}
    names = {g: [n for n in found[g] if n != "default"] for g in sorted(found) if g != "hydra"}
    return {group: own for group, own in names.items() if own}


def check_files(own: str | None, choices: Mapping[Any, Any]) -> None:
    """Check the user's own files that were chosen, which Hydra would ignore in part.

    Raises:
        UserError: for a file that is not UTF-8, or has no header, or that would not be read.
    """
    for group, name in choices.items() if own else ():
        file = Path(str(own), str(group), f"{name}.yaml")
        if not file.is_file():
            continue
        data, ours = file.read_bytes(), config_dir() / str(group) / file.name
        if ours.is_file() and ours.read_bytes() != data:
            raise UserError(f"{file} would be ignored for {group}={name} of dwsep_zoo; rename it")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8: {error}") from error
        if text.startswith("\ufeff"):
            raise UserError(f"{file} begins with a byte-order mark; save it as UTF-8 without")
        header = re.match(r"#\s*@package\s+_global_\s*$", text, re.MULTILINE)
        if group in GLOBAL_GROUPS and not header:
            raise UserError(f"{file} must begin with the line '# @package _global_'")
