"""Hydra: from a command line to a plain dictionary, and around a run or a sweep of runs."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dwsep_zoo.errors import UserError, choose

OPEN_GROUPS = ("trainer", "hydra")
"""Where ``+key=value`` may add keys: lightning's and Hydra's own, which are checked by them."""


def config_dir() -> Path:
    """The folder of YAML files: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def compose_config(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of one run as a plain dictionary.

    Args:
        overrides: as on the command line, ``["model=mobilenet_v2", "seed=1"]``. The run's folder
            has to be among them, ``paths.output_dir=...``, as Hydra is not there to name it.

    Raises:
        UserError: in one line, naming the value and the nearest choice.
    """
    check_overrides(overrides)
    with _configs():
        return _container(compose("train", list(overrides)))


@contextmanager
def _configs(own: str | None = None) -> Iterator[None]:
    """Hydra with the project's YAML files, and with those of a folder of the user's own."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        if own is not None:
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            search_path = hydra.config_loader.get_search_path()
            folder, schema = f"file://{Path(own).absolute()}", SearchPathQuery(provider="schema")
            search_path.prepend("command-line", folder, schema)  # as Hydra itself does
            hydra.config_loader = ConfigLoaderImpl(search_path)
        yield


def check_overrides(overrides: Sequence[str], own: str | None = None) -> None:
    """Check the groups, names and keys of a command line, every value of a sweep included.

    Args:
        overrides: as on the command line.
        own: the user's folder of YAML files, ``--config-dir``.

    Raises:
        UserError: in one line, naming the value and the nearest choice.
    """
    parser = OverridesParser.create()
    parsed = [_parse(parser, text) for text in overrides]
    if own is not None and not Path(own).is_dir():
        raise UserError(f"--config-dir {own}: there is no such folder")
    with _configs(own):
        loader = GlobalHydra.instance().config_loader()
        groups = [o for o in parsed if _is_group(loader, o)]
        for override in groups:
            for name in _values(override):
                if name is not None and str(name) != "null":
                    choose(
                        str(name),
                        loader.get_group_options(override.key_or_group),
                        override.key_or_group,
                    )
        try:
            full = compose("train", [_first_choice(o) for o in groups], return_hydra_config=True)
            for override in parsed:
                if override not in groups:
                    _check_key(full, loader, override)
            cfg = compose("train", [_first_choice(o) for o in parsed])
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(" ".join(str(error).split())) from error
    check_writable("paths.log_dir", Path(cfg.paths.log_dir))


def check_writable(key: str, folder: Path) -> None:
    """Raises UserError if no file can be created in a folder, or in its nearest existing parent."""
    parent = folder.absolute()
    try:
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise NotADirectoryError(20, "Not a directory")
        with tempfile.NamedTemporaryFile(dir=parent) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except OSError as error:
        raise UserError(f"cannot write to {key}={folder}: {error.strerror}") from error


def run_train(argv: Sequence[str] | None = None, *, prefix: Sequence[str] = ()) -> None:
    """``train.py``: one run, or with ``-m`` a sweep of runs that ends with their comparison.

    Args:
        argv: the command line's arguments; ``None``: ``sys.argv``'s.
        prefix: words before them that a process started with the same command line needs.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = expand_resume(arguments)
        options = get_args_parser().parse_args(arguments)
        check_overrides(options.overrides, options.config_dir)
    except UserError as error:
        fail(error)

    def task(cfg: DictConfig) -> None:
        sys.argv[1:] = [*prefix, *arguments]
        _task(cfg)

    sys.argv[1:] = arguments
    ComparisonCallback.failed = 0
    _made.clear()
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(task)()
    if ComparisonCallback.failed:
        sys.exit(1)


def fail(error: Exception) -> None:
    """Say what is wrong in one line and end the program with code 2."""
    _say(error)
    sys.exit(2)


def _say(error: Exception, where: str = "") -> None:
    text = " ".join(str(error).split())
    if not isinstance(error, UserError):
        text = f"{where}{type(error).__name__}: {text}"
    print(f"error: {text}", file=sys.stderr)


def _task(cfg: DictConfig) -> None:
    from dwsep_zoo.training import train  # lightning takes seconds to import

    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    config = _container(cfg)
    if multirun and (twin := _twin(config)):
        own = Path(config["paths"]["output_dir"]).name
        print(f"\n{own} would be the same run as {Path(twin).name}: not made again")
        return
    try:
        train(config)
    except Exception as error:
        if not multirun:
            if isinstance(error, UserError):
                fail(error)
            raise
        # train() has logged and recorded what went wrong; the other runs of the sweep go on.
        recorded = (Path(config["paths"]["output_dir"]) / "result.json").is_file()
        if isinstance(error, UserError) or not recorded:
            _say(error)
        ComparisonCallback.failed += not recorded  # else the comparison counts it


_made: dict[str, str] = {}  # runs of this sweep, by all that they depend on


def _twin(config: dict[str, Any]) -> str | None:
    """An earlier run of the sweep that is this one: ``conv=standard`` matched to ``standard``."""
    same = {key: value for key, value in config.items() if key not in ("paths", "match", "to")}
    matched = config["match"] if config["conv"]["name"] != config["to"] else None
    key = json.dumps([same, matched, config["to"] if matched else None], sort_keys=True)
    own = config["paths"]["output_dir"]
    return None if _made.setdefault(key, own) == own else _made[key]


class ComparisonCallback(Callback):
    """At the end of a sweep: the table of its runs, in the terminal and in the sweep's folder."""

    failed = 0

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from dwsep_zoo.report import compare
        from dwsep_zoo.training.profile import profile_side_by_side

        folder = Path(config.hydra.sweep.dir)
        # Hydra makes a warning of what a callback raises, and a success of the sweep.
        try:
            profile_side_by_side(folder)
        except Exception as error:
            ComparisonCallback.failed += 1
            _say(error, "measuring the networks in turns: ")
        try:
            comparison = compare([folder], folder)
        except Exception as error:
            ComparisonCallback.failed += 1
            _say(error, f"the report (dwsep compare {folder} makes it again): ")
        else:
            ComparisonCallback.failed += len(comparison.unfinished) + len(comparison.problems)


def _container(cfg: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]


def _parse(parser: OverridesParser, text: str) -> Override:
    try:
        return parser.parse_override(text)
    except HydraException as error:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"cannot read {text!r}: expected key=value") from error
        quoted = f"{key}='{value}'"
        raise UserError(
            f"cannot read {text!r}: a value with such characters needs quotes within the shell's: "
            f'"{quoted}"'
        ) from error


def _is_group(loader: ConfigLoader, override: Override) -> bool:
    return override.key_or_group in loader.list_groups("")


def _values(override: Override) -> list[Any]:
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.value()]


def _first_choice(override: Override) -> str:
    if not override.is_sweep_override():
        return override.input_line or ""
    sign = "++" if override.is_force_add() else "+" if override.is_add() else ""
    return f"{sign}{override.get_key_element().lstrip('+')}={_values(override)[0]}"


def _check_key(cfg: DictConfig, loader: ConfigLoader, override: Override) -> None:
    node: Any = cfg
    path: list[str] = []
    for part in override.key_or_group.split("."):
        if not isinstance(node, DictConfig):
            raise UserError(f"unknown key {override.key_or_group!r}: {'.'.join(path)} has no parts")
        if part not in node:
            adds = override.is_add() or override.is_force_add()
            if adds and path and path[0] in OPEN_GROUPS:
                return
            names = [str(key) for key in node if path or key != "hydra"]
            where = f"key of {'.'.join(path)}" if path else "key"
            choose(part, names, where)
        node = node._get_node(part)
        path.append(part)


def expand_resume(arguments: list[str]) -> list[str]:
    """Turn ``resume=last`` or ``resume=RUN_DIR`` into that run's command line and folder."""
    # Processes that lightning starts are given the quotes that are added below.
    resume = [a.removeprefix("resume=").strip("'") for a in arguments if a.startswith("resume=")]
    if not resume or resume[-1] == "null":
        return arguments
    if "-m" in arguments or "--multirun" in arguments:
        raise UserError("resume= goes on with one run; it cannot be used with -m")
    new = [a for a in arguments if not a.startswith("resume=")]
    log_dir = [a.removeprefix("paths.log_dir=") for a in new if a.startswith("paths.log_dir=")]
    run = _last_run(Path([*log_dir, "logs"][0])) if resume[-1] == "last" else Path(resume[-1])
    recorded = run / ".hydra" / "overrides.yaml"
    if not recorded.is_file():
        raise UserError(f"resume={run}: not the folder of a run (it has no .hydra/overrides.yaml)")
    if not (run / "checkpoints" / "last.ckpt").is_file():
        raise UserError(
            f"resume={run}: no checkpoints/last.ckpt was saved yet; start again without"
        )
    check_writable("resume", run)
    changed = {a.lstrip("+~").split("=", 1)[0] for a in new}
    old = [
        str(a)
        for a in OmegaConf.load(recorded)
        if str(a).lstrip("+~").split("=", 1)[0] not in {*changed, "resume"}
    ]
    # A run of an experiment that is a sweep goes on alone.
    return [*old, *new, f"resume='{run}'", f"hydra.run.dir='{run}'", "hydra.mode=RUN"]


def _last_run(log_dir: Path) -> Path:
    runs = [p.parent.parent for p in log_dir.glob("**/.hydra/overrides.yaml")]
    if not runs:
        raise UserError(f"resume=last: there is no run below {log_dir}")
    return max(runs, key=lambda run: (run / ".hydra" / "overrides.yaml").stat().st_mtime)
