"""``dwsep COMMAND``, in the words of ``train.py``: ``key=value``."""

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
  dwsep compare logs [by=conv] [model=xception]    report on all runs below a folder
  dwsep list ['efficientnet*'] [conv=standard]     models: parameters, MACs, published weights
  dwsep explain in=3 out=3 kernel=3                the arithmetic of one convolution
  dwsep explain model=mobilenet_v1 [conv=standard] a network layer by layer
  dwsep profile model=mobilenet_v2 [--roofline]    latency by runtime, memory, what layers wait for
  dwsep bench model=mobilenet_v2 [conv=standard]   every runtime, for one image and for 32
  dwsep doctor                                     what this machine has, and what is slow on it
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
    from dwsep_zoo.report import Options
    from dwsep_zoo.report import compare as compare_runs
    from dwsep_zoo.report.table import FIELDS

    paths, given = _read(
        arguments, out=None, by="model", reference="standard", **dict.fromkeys(FIELDS)
    )
    if not paths:
        raise UserError("compare: name the folders of the runs, for example: dwsep compare logs")
    # match=null is a value too
    named = [argument.split("=", 1)[0] for argument in arguments if "=" in argument]
    options = Options(
        by=_listed(given["by"]),
        reference=str(given["reference"]),
        where={name: _listed(given[name]) for name in FIELDS if name in named},
    )
    out = given["out"]
    compare_runs([Path(path) for path in paths], Path(out) if out else None, options=options)


def list_models(arguments: list[str]) -> None:
    from dwsep_zoo.analysis.explain import list_table

    patterns, options = _read(arguments, conv="depthwise_separable", width_mult=1.0)
    console = stdout_console()
    for part in list_table(patterns or ["*"], **options):
        console.print(part)


def explain(arguments: list[str]) -> None:
    from dwsep_zoo.analysis.explain import explain_conv, explain_model

    network = {
        "model": None,
        "conv": "depthwise_separable",
        "width_mult": 1.0,
        "size": None,
        "output_stride": 32,
        "num_classes": 1000,
        "in_chans": 3,
    }
    convolution = {"in": 3, "out": 3, "kernel": 3, "stride": 1, "size": 224}
    has_model = any(a.startswith("model=") for a in arguments)
    words, options = _read(arguments, **(network if has_model else convolution))
    if words:
        raise UserError(f"explain: cannot read {words[0]!r}; values are given as key=value")
    if has_model:
        parts = explain_model(options.pop("model"), **options)
    else:
        parts = explain_conv(options.pop("in"), **options)
    console = stdout_console()
    for part in parts:
        console.print(part)


def profile(arguments: list[str]) -> None:
    from rich.console import Console

    from dwsep_zoo.analysis.profile import cost_table, latency_table, measure, plan_profile
    from dwsep_zoo.ops import fallbacks

    arguments = ["roofline=true" if word == "--roofline" else word for word in arguments]
    words, options = _read(
        arguments,
        model=None,
        conv="standard,depthwise_separable",
        width_mult=1.0,
        size=None,
        output_stride=32,
        num_classes=1000,
        in_chans=3,
        batch_size=1,
        runtimes=None,
        precision="fp32",
        threads=None,
        device="cpu",
        roofline=False,
        out=None,
    )
    roofline, out = options.pop("roofline"), options.pop("out")
    if words or not options["model"]:
        raise UserError("profile: name a model, for example: dwsep profile model=mobilenet_v2")
    if not isinstance(roofline, bool):
        raise UserError(f"roofline must be true or false; got {roofline!r}")
    if out and not roofline:
        raise UserError(f"out={out} is for the roofline's figure; add --roofline")
    figure = Path(str(out or "profile-roofline.svg"))
    if figure.suffix != ".svg" or not figure.parent.is_dir():
        raise UserError(f"out must be an .svg file in a folder that exists; got {out}")
    plan = plan_profile(**options)
    console = stdout_console()
    console.print(cost_table(plan))
    fallbacks.clear()
    with Console(stderr=True).status("") as status:
        measured = measure(plan, lambda what: status.update(f"measuring {what}"))
    console.print(latency_table(plan, measured))
    for reason, times in fallbacks.items():
        console.print(f"PyTorch's depthwise kernel was used {times:,} times: {reason}")
    if roofline:
        import matplotlib

        from dwsep_zoo.analysis.roofline import measure_roofline, roofline_tables, sentence
        from dwsep_zoo.report.roofline import roofline_figure

        with Console(stderr=True).status("measuring each layer"):
            layers = measure_roofline(
                plan.networks,
                plan.input_size,
                batch_size=plan.batch_sizes[0],
                precision=plan.conditions[0]["precision"],
                device=plan.device,
                threads=plan.threads,
            )
        for part in roofline_tables(layers):
            console.print(part)
        same = ("eager", layers.precision, layers.batch_size)
        eager = [m for m in measured if (m.runtime, m.precision, m.batch_size) == same]
        for name in plan.networks:
            if name != plan.reference:
                speed = eager[0].speed(plan.reference, name) if eager else None
                console.print(sentence(layers, plan.reference, name, speed))
        with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
            roofline_figure(layers).savefig(figure)
        console.print(f"wrote {figure}")


def bench(arguments: list[str]) -> None:
    profile(["runtimes=all", "batch_size=1,32", *arguments])


def doctor(arguments: list[str]) -> None:
    from dwsep_zoo.analysis.doctor import doctor as examine

    words, _ = _read(arguments)
    if words:
        raise UserError(f"doctor takes no arguments; got {' '.join(words)!r}")
    for part in examine():
        stdout_console().print(part)


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
    "profile": profile,
    "bench": bench,
    "doctor": doctor,
    "export-weights": export_weights,
}


def _listed(value: Any) -> tuple[str, ...]:
    """The parts of ``a,b``, or of a YAML list; YAML's nothing as a user writes it, ``null``."""
    text = "null" if value is None else str(value)
    parts = value if isinstance(value, list) else text.split(",")
    return tuple("null" if part is None else str(part).strip() for part in parts)


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
