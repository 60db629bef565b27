"""``dwsep train | compare | list | explain``: the words of ``train.py``, ``key=value``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.terminal import stdout_console

USAGE = """\
usage: dwsep COMMAND [key=value ...]

  dwsep train model=mobilenet_v1 conv=standard     train a network (dwsep train --help)
  dwsep compare logs                               table of all runs below a folder
  dwsep list ['efficientnet*'] [conv=standard]     models: parameters, MACs, published weights
  dwsep explain in=3 out=3 kernel=3                the arithmetic of one convolution
  dwsep explain model=mobilenet_v1 [conv=standard] a network layer by layer
  dwsep export-weights RUN to=timm out=FILE        a run's weights for timm or torchvision
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; on wrong input print one line and exit with code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    name, *rest = arguments
    try:
        choose(name, COMMANDS, "command")
        if name != "train" and {"-h", "--help"} & set(rest):
            print(USAGE, end="")
            return
        COMMANDS[name](rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def train(arguments: list[str]) -> None:
    from dwsep_zoo.config import run_train

    # Processes that lightning starts for trainer=ddp are given this same command line.
    run_train(arguments, prefix=["train"])


def compare(arguments: list[str]) -> None:
    from dwsep_zoo.report import compare as compare_runs

    paths, options = _read(arguments, out=None)
    if not paths:
        raise UserError("compare: name the folders of the runs, for example: dwsep compare logs")
    out = options["out"]
    compare_runs([Path(path) for path in paths], Path(out) if out else None)


def list_models(arguments: list[str]) -> None:
    from dwsep_zoo.analysis.explain import list_table

    patterns, options = _read(arguments, conv="depthwise_separable", width_mult=1.0)
    console = stdout_console()
    for part in list_table(patterns or ["*"], **options):
        console.print(part)


def explain(arguments: list[str]) -> None:
    from dwsep_zoo.analysis.explain import explain_conv, explain_model

    keys = {a.split("=", 1)[0] for a in arguments}
    if "model" in keys:
        _, options = _read(
            arguments,
            model=None,
            conv="depthwise_separable",
            width_mult=1.0,
            size=None,
            output_stride=32,
            num_classes=1000,
            in_chans=3,
        )
        parts = explain_model(options.pop("model"), **options)
    else:
        _, options = _read(arguments, **{"in": 3}, out=3, kernel=3, stride=1, size=224)
        in_chans = options.pop("in")
        parts = explain_conv(in_chans, **options)
    console = stdout_console()
    for part in parts:
        console.print(part)


def export_weights(arguments: list[str]) -> None:
    from dwsep_zoo.weights import export_weights as export

    paths, options = _read(arguments, to=None, out=None)
    if len(paths) != 1 or not options["to"] or not options["out"]:
        raise UserError(
            "export-weights: for example: dwsep export-weights logs/train/runs/RUN to=timm "
            "out=weights.safetensors"
        )
    name = export(paths[0], options["to"], options["out"])
    print(f"{options['out']}: for {options['to']}'s {name}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "compare": compare,
    "list": list_models,
    "explain": explain,
    "export-weights": export_weights,
}


def _read(arguments: list[str], **defaults: Any) -> tuple[list[str], dict[str, Any]]:
    """Split a command line into its words and its ``key=value`` pairs, read as YAML."""
    words = [a for a in arguments if "=" not in a]
    for word in words:
        if word.startswith("-"):
            raise UserError(f"unknown option {word!r}; values are given as key=value")
    options = dict(defaults)
    for argument in arguments:
        if "=" in argument:
            key, value = argument.split("=", 1)
            options[choose(key, defaults, "key")] = yaml.safe_load(value)
    return words, options
