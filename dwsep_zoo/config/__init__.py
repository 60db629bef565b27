"""Hydra: from a command line to typed settings, checked before anything is written."""

from dwsep_zoo.config.compose import (
    OUTPUT_DIR,
    Composed,
    check_key,
    compose_jobs,
    compose_line,
    compose_settings,
    hydra_main,
)
from dwsep_zoo.config.files import config_dir, groups_with_names
from dwsep_zoo.config.line import Line, quoted, read_line, values_of

__all__ = [
    "OUTPUT_DIR",
    "Composed",
    "Line",
    "check_key",
    "compose_jobs",
    "compose_line",
    "compose_settings",
    "config_dir",
    "groups_with_names",
    "hydra_main",
    "quoted",
    "read_line",
    "values_of",
]
