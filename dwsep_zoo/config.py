"""Hydra: from a command line to typed settings, checked before anything is written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dwsep_zoo.errors import UserError, choose, nearest
from dwsep_zoo.schema.settings import Settings, parse_settings

OUTPUT_DIR = "paths.output_dir"
OPTIONAL_GROUPS = ("experiment", "debug", "hparams_search")


def config_dir() -> Path:
    """The folder of YAML files: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


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
class Line:
    """The overrides of a command line.

    Attributes:
        overrides: as Hydra parses them.
        own: the user's folder of YAML files.
    """

    overrides: tuple[Override, ...]
    own: str | None = None

    @property
    def first(self) -> list[str]:
        """One text for each override, of a sweep its first value."""
        return [_with_value(o, _values(o)[0]) for o in self.overrides]

    @property
    def keys(self) -> list[str]:
        """The keys and groups that are set."""
        return [o.key_or_group for o in self.overrides]

    @property
    def swept(self) -> list[Override]:
        """The overrides with several values."""
        return [o for o in self.overrides if o.is_sweep_override()]

    def further(self) -> Iterator[list[str]]:
        """Yield ``first`` again for each further value of a sweep, with that value."""
        first = self.first
        for number, override in enumerate(self.overrides):
            for value in _values(override)[1:]:
                yield [*first[:number], _with_value(override, value), *first[number + 1 :]]

    def value(self, key: str) -> object:
        """The last value of a key; ``None`` if it is not set."""
        found = [o.value() for o in self.overrides if o.key_or_group == key]
        return found[-1] if found else None


def read_line(overrides: Sequence[str], own: str | None = None) -> Line:
    """Parse the overrides of a command line.

    Args:
        overrides: ``key=value``, ``group=name``, ``+key=value`` or ``~key``.
        own: the user's folder of YAML files.

    Raises:
        UserError: for a text that is no override, or a folder that does not exist.
    """
    if own is not None and not Path(own).is_dir():
        raise UserError(f"--config-dir {own}: there is no such folder")
    parser = OverridesParser.create()
    return Line(tuple(_parse_override(parser, text) for text in overrides), own)


def _parse_override(parser: OverridesParser, text: str) -> Override:
    if text.startswith("+") and not text.startswith("++"):
        text = f"+{text}"  # adds the key or, if it exists, sets it
    try:
        return parser.parse_override(text)
    except HydraException as error:
        key, equals, value = text.partition("=")
        if not equals:
            hint = _leaf_hint(text)
            raise UserError(f"cannot read {text!r}: expected key=value{hint}") from error
        raise UserError(
            f"cannot read {text!r}: a value with such characters needs quotes within the shell's: "
            f"\"{key}='{value}'\""
        ) from error


@contextmanager
def _configs() -> Iterator[None]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield


@dataclass(frozen=True)
class Composed:
    """A composed configuration.

    Attributes:
        values: as plain data, before it is parsed.
        multirun: whether it asks for a sweep.
        sweep_dir: the folder of that sweep.
    """

    values: dict[str, Any]
    multirun: bool
    sweep_dir: Path

    @property
    def settings(self) -> Settings:
        return parse_settings(self.values)


def compose_line(line: Line, overrides: Sequence[str]) -> Composed:
    """Compose a configuration from the YAML files.

    Args:
        line: the command line, for its folder of YAML files and for messages.
        overrides: its overrides, each with one value.

    Raises:
        UserError: naming the value and the nearest choice.
    """
    with _configs():
        groups = set(GlobalHydra.instance().config_loader().list_groups(""))
        chosen = [o for o in line.overrides if o.key_or_group in groups]
        _check_groups(line, chosen)
        try:
            texts = [_for_hydra(text, groups) for text in overrides]
            cfg = compose("train", [*_search_path(line), *texts], return_hydra_config=True)
            if line.value(OUTPUT_DIR) is None:
                cfg.paths.output_dir = str(Path(cfg.hydra.run.dir).absolute())
            return Composed(
                plain(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])),
                cfg.hydra.mode == RunMode.MULTIRUN,
                Path(cfg.hydra.sweep.dir).absolute(),
            )
        except (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
            keys = [o for o in line.overrides if o not in chosen and not o.is_delete()]
            firsts = [_with_value(o, _values(o)[0]) for o in chosen]
            _check_keys(line, [_for_hydra(text, groups) for text in firsts], keys)
            raise UserError(" ".join(str(error).split()) or type(error).__name__) from error


def _for_hydra(text: str, groups: set[str]) -> str:
    """An override that means the same to Hydra: groups are not added, and null removes one."""
    if _key(text) not in groups:
        return text
    return f"~{_key(text)}" if text.endswith("=null") else text.lstrip("+")


def _search_path(line: Line) -> list[str]:
    return [f"hydra.searchpath=['file://{Path(line.own).absolute()}']"] if line.own else []


def _check_groups(line: Line, chosen: Sequence[Override]) -> None:
    """Raises UserError for the first unknown name of a group."""
    loader = GlobalHydra.instance().config_loader()
    for override in chosen:
        group = override.key_or_group
        names = loader.get_group_options(group, config_name="train", overrides=_search_path(line))
        if group in ("model", "data"):  # their defaults are what the others share
            names = [name for name in names if name != "default"]
        for value in _values(override):
            if value is not None or group not in OPTIONAL_GROUPS:
                choose("null" if value is None else str(value), names, group)


def _check_keys(line: Line, chosen: Sequence[str], keys: Sequence[Override]) -> None:
    """Raises UserError for the first unknown key."""
    try:
        full = compose("train", [*_search_path(line), *chosen], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError):
        return
    for override in keys:
        check_key(full, override.key_or_group)


def check_key(cfg: DictConfig, key: str) -> None:
    """Raises UserError for a key that a configuration does not have, with the nearest one."""
    node: Any = cfg
    path: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            raise UserError(f"unknown key {key!r}: {'.'.join(path)} has no parts")
        if part not in node:
            names = [str(name) for name in node if path or name != "hydra"]
            if not path and (hint := _leaf_hint(part, cfg)):
                raise UserError(f"unknown key {key!r}{hint}")
            choose(part, names, f"key of {'.'.join(path)}" if path else "key")
        node = node._get_node(part)
        path.append(part)


def _leaf_hint(word: str, cfg: DictConfig | None = None) -> str:
    """``; did you mean recipe.lr?`` for a bare word that is the last part of a key."""
    if cfg is None:
        with _configs():
            cfg = compose("train")
    leaves = {leaf.rpartition(".")[2]: leaf for leaf in reversed(list(_leaves(cfg)))}
    found = word if word in leaves else nearest(word, leaves, cutoff=0.8)
    return f"; did you mean {leaves[found]}=...?" if found else ""


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


def groups_with_names() -> dict[str, list[str]]:
    """The groups of the configuration and the names that each has."""
    with _configs():
        loader = GlobalHydra.instance().config_loader()
        found = {group: loader.get_group_options(group) for group in loader.list_groups("")}
    names = {g: [n for n in found[g] if n != "default"] for g in sorted(found) if g != "hydra"}
    return {group: own for group, own in names.items() if own}


def hydra_main(task: Callable[[DictConfig], None], arguments: Sequence[str]) -> None:
    """Hydra's own command line: a sweep, or information on the configuration."""
    sys.argv[1:] = arguments
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(task)()


def _values(override: Override) -> list[Any]:
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.value()]


def _with_value(override: Override, value: Any) -> str:
    if not override.is_sweep_override():
        return override.input_line or ""
    sign = "++" if override.is_force_add() else "+" if override.is_add() else ""
    return f"{sign}{override.get_key_element().lstrip('+')}={value}"


def _key(text: str) -> str:
    return text.lstrip("+~").partition("=")[0].partition("@")[0]
