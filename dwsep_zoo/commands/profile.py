"""``dwsep profile``: variants of a network beside each other, measured on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dwsep_zoo.commands.arguments import NetworkArguments, Numbers, Texts, read
from dwsep_zoo.errors import UserError

if TYPE_CHECKING:
    from dwsep_zoo.analysis.cost import Cost
    from dwsep_zoo.commands.variants import Variants

FIGURE = "profile-roofline.svg"


class ProfileArguments(NetworkArguments):
    """Measure variants of a network; several values are given as a,b."""

    model: str | None = Field(None, description="name of the network, see dwsep list; required")
    conv: Texts = Field(("standard", "depthwise_separable"), description="the variants")
    batch_size: Numbers = Field((1,), description="images in a batch")
    runtimes: Texts | None = Field(
        None, description="what computes; all: every one; null: all but the two that compile"
    )
    precision: Texts = Field(("fp32",), description="fp32, bf16")
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="CPU threads; null: PyTorch's setting"
    )
    device: str = Field("cpu", description="cpu or cuda")
    roofline: bool = Field(False, description="time every layer; --roofline does the same")
    out: str | None = Field(None, description=f"figure of the roofline; null: {FIGURE}")


def run(arguments: list[str]) -> None:
    words = ["roofline=true" if word == "--roofline" else word for word in arguments]
    _, options = read("profile", words, ProfileArguments)
    if not options.model:
        raise UserError("profile: name a model, for example: dwsep profile model=mobilenet_v2")
    figure = _figure(options)
    from rich.console import Console

    from dwsep_zoo.analysis.cost import measure_cost
    from dwsep_zoo.commands.variants import cost_table, latency_table, plan_variants
    from dwsep_zoo.ops import fallbacks
    from dwsep_zoo.terminal import stdout_console

    plan = plan_variants(options)
    console = stdout_console()
    console.print(cost_table(plan))
    fallbacks.clear()
    conditions = ("batch_size", "precision", "device", "threads")
    layers = {name: getattr(plan.workloads[0], name) for name in conditions}
    with Console(stderr=True).status("") as status:
        costs = measure_cost(
            plan.networks,
            plan.input_size,
            plan.workloads,
            roofline=layers if options.roofline else None,
            say=lambda what: status.update(f"measuring {what}"),
        )
    console.print(latency_table(plan, costs))
    for reason, times in fallbacks.items():
        console.print(f"PyTorch's depthwise kernel was used {times:,} times: {reason}")
    if options.roofline:
        _show_roofline(plan, costs, figure)


def _figure(options: ProfileArguments) -> Path:
    if options.out and not options.roofline:
        raise UserError(f"out={options.out} is for the roofline's figure; add --roofline")
    figure = Path(options.out or FIGURE)
    if figure.suffix != ".svg" or not figure.parent.is_dir():
        raise UserError(f"out must be an .svg file in a folder that exists; got {options.out}")
    return figure


def _show_roofline(plan: Variants, costs: Sequence[Cost], figure: Path) -> None:
    from dataclasses import replace

    from dwsep_zoo.analysis.bottleneck import sentence
    from dwsep_zoo.analysis.latency import compare_turns
    from dwsep_zoo.commands.roofline import roofline_tables
    from dwsep_zoo.report.figures import roofline_figure
    from dwsep_zoo.report.figures.svg import document
    from dwsep_zoo.terminal import stdout_console

    alone = [cost.roofline for cost in costs if cost.roofline]
    layers = replace(alone[0], networks=tuple(one.networks[0] for one in alone))
    console = stdout_console()
    for part in roofline_tables(layers):
        console.print(part)
    measured = dict(zip(plan.networks, costs, strict=True))
    same = ("eager", layers.precision, layers.batch_size)
    eager = [
        i for i, w in enumerate(plan.workloads) if (w.runtime, w.precision, w.batch_size) == same
    ]
    for name in plan.networks:
        if name != plan.reference:
            speed = None  # by the passes of the roofline
            if eager:
                turns = (measured[n].timings[eager[0]].turns for n in (plan.reference, name))
                speed = 1 / compare_turns(*turns).ratio
            console.print(sentence(layers, plan.reference, name, speed))
    figure.write_text(document(roofline_figure(layers)), encoding="utf-8")
    console.print(f"wrote {figure}")
