"""From a command line to a composed configuration and typed settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dwsep_zoo.config.files import check_files, config_dir, configs
from dwsep_zoo.config.line import Line, quoted, read_line, values_of, with_value
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.schema.parse import key_names, unknown_key
from dwsep_zoo.schema.settings import Settings, parse_settings
from dwsep_zoo.schema.sweep import Job
from dwsep_zoo.schema.texts import checked_place

OUTPUT_DIR = "paths.output_dir"
OPTIONAL_GROUPS = ("experiment", "debug", "hparams_search")
HYDRA_KEYS = ("hydra.run.dir", "hydra.sweep.dir")
"""Keys of Hydra's own that may be set: they name folders."""


def compose_jobs(line: Line, params: Sequence[str] = ()) -> list[Job]:
    """Compose every run of a sweep.

    Args:
        line: the command line.
        params: what the YAML files sweep over, if the command line does not set it.

    Raises:
        UserError: naming the value and the nearest choice.
    """
    overrides = (*read_line(params).overrides, *line.overrides)
    values = {o.get_key_element(): o for o in overrides}  # of several, the last one counts
    texts = ([with_value(o, value) for value in values_of(o)] for o in values.values())
    jobs = []
    for number, chosen in enumerate(product(*texts)):
        composed = compose_line(line, chosen, number)
        try:
            config = composed.settings.plain()
        except UserError:  # which the sweep names when it comes to this run
            config = composed.values
        jobs.append(Job(folder=composed.subdir, overrides=chosen, config=config))
    return jobs


def compose_settings(overrides: Sequence[str] = ()) -> Settings:
    """The settings of one run.

    Args:
        overrides: as on the command line, ``["model=mobilenet_v2", "seed=1"]``. Without
            ``paths.output_dir=...`` the folder of the run is named by the time.

    Raises:
        UserError: in one line, naming the value and the nearest choice.
    """
    line = read_line(overrides)
    return compose_line(line, line.first).settings


@dataclass(frozen=True)
class Composed:
    """A composed configuration.

    Attributes:
        values: as plain data, before it is parsed.
        multirun: whether it asks for a sweep.
        sweep_dir: the folder of that sweep.
        subdir: the name of a run's folder in it.
        params: what the YAML files sweep over, as texts of overrides.
    """

    values: dict[str, Any]
    multirun: bool
    sweep_dir: Path
    subdir: str
    params: tuple[str, ...]

    @property
    def settings(self) -> Settings:
        return parse_settings(self.values)


def compose_line(line: Line, overrides: Sequence[str], number: int = 0) -> Composed:
    """Compose a configuration from the YAML files.

    Args:
        line: the command line, for its folder of YAML files and for messages.
        overrides: its overrides, each with one value.
        number: of a run in its sweep.

    Raises:
        UserError: naming the value and the nearest choice.
    """
    with configs() as loader:
        groups = set(loader.list_groups(""))
        chosen = [o for o in line.overrides if o.key_or_group in groups]
        keys = [o for o in line.overrides if o not in chosen]
        _check_groups(loader, line, chosen)
        _check_hydra(keys)
        texts = [_for_hydra(text, groups) for text in overrides]
        cfg = None
        try:
            texts += [*_search_path(line), f"hydra.job.num={number}"]
            cfg = compose("train", texts, return_hydra_config=True)
            check_files(line.own, cfg.hydra.runtime.choices)
            return _composed(line, cfg)
        except _CONFIG_ERRORS as error:
            if cfg is not None:
                _check_unresolved(cfg)
            firsts = [with_value(o, values_of(o)[0]) for o in chosen]
            _check_keys(line, [_for_hydra(text, groups) for text in firsts], keys)
            named = [text for text in overrides if "${" in text]
            raise UserError(": ".join([*named, _reason(error)])) from error


_CONFIG_ERRORS = (
    *(HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError, RecursionError),
)


def _composed(line: Line, cfg: DictConfig) -> Composed:
    places = ("paths.log_dir", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
    _, run, sweep, subdir = (checked_place(key, OmegaConf.select(cfg, key)) for key in places)
    if line.value(OUTPUT_DIR) is None:
        cfg.paths.output_dir = str(Path(run).absolute())
    if cfg.hydra.callbacks:
        raise UserError("hydra.callbacks are not used here; see the group callbacks")
    for part in ("sweeper", "launcher"):
        if ".basic_" not in cfg.hydra[part]._target_:
            raise UserError(f"hydra/{part}: sweeps are made by dwsep_zoo itself; see --jobs")
    own: list[Any] = [key for key in cfg if key != "hydra"]
    return Composed(
        plain(OmegaConf.masked_copy(cfg, own)),
        cfg.hydra.mode == RunMode.MULTIRUN,
        Path(sweep).absolute(),
        subdir,
        tuple(f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()),
    )


def _reason(error: BaseException) -> str:
    """An error and the one behind it in a line, without Hydra's and OmegaConf's further ones."""
    if isinstance(error, RecursionError):
        return "an alias in a YAML file leads back to itself"
    found = []
    for one in (error, error.__cause__):
        lines = str(one or "").strip().splitlines()
        own = isinstance(one, HydraException | OmegaConfBaseException)
        found.append(" ".join(" ".join(lines[:1] if own else lines).split()))
    return ": ".join(dict.fromkeys(text for text in found if text)) or type(error).__name__


def _for_hydra(text: str, groups: set[str]) -> str:
    """An override that means the same to Hydra: groups are not added, and null removes one."""
    if _key(text) not in groups:
        return text
    return f"~{_key(text)}" if text.endswith("=null") else text.lstrip("+")


def _search_path(line: Line) -> list[str]:
    if not line.own:
        return []
    return [f"hydra.searchpath=[{quoted(f'file://{Path(line.own).absolute()}')}]"]


def _check_groups(loader: ConfigLoader, line: Line, chosen: Sequence[Override]) -> None:
    """Raises UserError for the first unknown name of a group, or file that cannot be read."""
    for override in chosen:
        group = override.key_or_group
        if override.package is not None:
            raise UserError(f"{group}@{override.package}: a group has one place; use {group}=...")
        names = loader.get_group_options(group, config_name="train", overrides=_search_path(line))
        if group in ("model", "data"):  # their defaults are what the others share
            names = [name for name in names if name != "default"]
        for value in values_of(override):
            if value is not None or group not in OPTIONAL_GROUPS:
                choose("null" if value is None else str(value), names, group)
                check_files(line.own, {group: value})


def _check_hydra(keys: Sequence[Override]) -> None:
    """Raises UserError for a key of Hydra's that would change how runs are made."""
    for override in keys:
        if override.is_hydra_override():
            choose(override.key_or_group, HYDRA_KEYS, "key of Hydra")


def _check_unresolved(cfg: DictConfig) -> None:
    """Raises UserError for a group or key whose absence let an interpolation fail."""
    values = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(values, dict)
    values.pop("hydra")
    try:
        parse_settings(values)
    except UserError as error:
        if "${" not in str(error):
            raise


def _check_keys(line: Line, chosen: Sequence[str], keys: Sequence[Override]) -> None:
    """Raises UserError for the first unknown key."""
    try:
        full = compose("train", [*_search_path(line), *chosen], return_hydra_config=True)
    except _CONFIG_ERRORS:
        return
    for override in keys:
        check_key(full, override.key_or_group)


def check_key(cfg: DictConfig, key: str) -> None:
    """Raises UserError for a key that a configuration does not have, with the nearest one."""
    node: Any = cfg
    path: list[str] = []
    for part in key.split("."):
        group = ".".join(path)
        if node is None and group in OPTIONAL_GROUPS:
            raise UserError(f"{key} has no effect: {group} is null; choose one with {group}=NAME")
        if not isinstance(node, DictConfig):
            raise UserError(f"unknown key {key!r}: {group} has no parts")
        path.append(part)
        if part not in node:
            raise unknown_key(".".join(path), [*key_names(Settings), *_leaves(cfg)])
        node = node._get_node(part)
        node = None if node is None or node._is_none() else node


def _leaves(cfg: DictConfig, path: str = "") -> Iterator[str]:
    for key in map(str, cfg):
        if path or key != "hydra":
            name, node = f"{path}{key}", cfg._get_node(key)
            if isinstance(node, DictConfig) and not node._is_none():
                yield from _leaves(node, f"{name}.")
            yield name


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A configuration as dictionaries, lists and scalars, resolved."""
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def hydra_main(task: Callable[[DictConfig], None], arguments: Sequence[str]) -> None:
    """Hydra's own command line: a sweep, or information on the configuration."""
    sys.argv[1:] = arguments
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(task)()


def _key(text: str) -> str:
    return text.lstrip("+~").partition("=")[0].partition("@")[0]
