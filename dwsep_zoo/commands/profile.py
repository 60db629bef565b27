"""``dwsep profile``: variants of a network beside each other, measured on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dwsep_zoo.commands.arguments import NetworkArguments, Numbers, Texts, read
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.files import atomic_write, check_writable
from dwsep_zoo.schema.texts import Place
from dwsep_zoo.terminal import stdout_console

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import nn

    from dwsep_zoo.analysis.cost import Cost
    from dwsep_zoo.analysis.runtimes import Workload

FIGURE = "profile-roofline.svg"
DEFAULT_RUNTIMES = ("eager", "fused", "onnxruntime", "openvino")  # the others compile for minutes


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
    patience: Annotated[float, Field(ge=0)] = Field(
        20.0, description="seconds to wait for steady times on a busy machine"
    )
    roofline: bool = Field(False, description="time every layer; --roofline does the same")
    out: Place | None = Field(None, description=f"figure of the roofline; null: {FIGURE}")


@dataclass(frozen=True)
class Variants:
    """Networks to measure in turns; every workload can run here.

    Attributes:
        name: the model and its width.
        networks: by conv type.
        input_size: ``(C, H, W)``.
        notes: reasons why other workloads cannot be measured.
    """

    name: str
    networks: Mapping[str, nn.Module]
    input_size: tuple[int, int, int]
    batch_sizes: tuple[int, ...]
    workloads: tuple[Workload, ...]
    notes: tuple[str, ...]

    @property
    def reference(self) -> str:
        """The conv type that the others are compared with."""
        return "standard" if "standard" in self.networks else next(iter(self.networks))


def run(arguments: list[str]) -> None:
    words = ["roofline=true" if word == "--roofline" else word for word in arguments]
    _, options = read("profile", words, ProfileArguments)
    if not options.model:
        raise UserError("profile: name a model, for example: dwsep profile model=mobilenet_v2")
    if options.out and not options.roofline:
        raise UserError(f"out={options.out} is for the roofline's figure; add --roofline")
    figure = Path(options.out or FIGURE)
    if figure.suffix != ".svg" or not figure.parent.is_dir():
        raise UserError(f"out must be an .svg file in a folder that exists; got {options.out}")
    if options.roofline:
        check_writable("out", figure.parent)
    from rich.console import Console

    from dwsep_zoo.analysis.cost import measure_cost
    from dwsep_zoo.analysis.latency import BATCHES, COMPARE_TURNS
    from dwsep_zoo.commands.profile_tables import cost_table, latency_table
    from dwsep_zoo.ops import fallbacks

    plan = plan_variants(options)
    console = stdout_console()
    console.print(cost_table(plan))
    fallbacks.clear()
    with Console(stderr=True).status("") as status:
        costs = measure_cost(
            plan.networks,
            plan.input_size,
            plan.workloads,
            least_turns=COMPARE_TURNS if len(plan.networks) > 1 else BATCHES,
            patience=options.patience,
            roofline=plan.workloads[0] if options.roofline else None,
            say=lambda what: status.update(f"measuring {what}"),
        )
    console.print(latency_table(plan, costs))
    for name, network in plan.networks.items():
        console.print(f"{name}, in training: {_in_training(network, plan.input_size)}")
    for reason, times in fallbacks.items():
        console.print(f"PyTorch's depthwise kernel was used {times:,} times: {reason}")
    if options.roofline:
        for part in _roofline(plan, costs, figure):
            console.print(part)


def _in_training(network: nn.Module, input_size: tuple[int, int, int]) -> str:
    """Which layers this project's kernels compute in a step of training."""
    import copy

    import torch

    from dwsep_zoo.acceleration import accelerate, explain, summary

    images = torch.randn(2, *input_size, device=next(network.parameters()).device)
    images = images.contiguous(memory_format=torch.channels_last)
    trained = copy.deepcopy(network).train().to(memory_format=torch.channels_last)
    return summary(network, explain(accelerate(trained), images))


def plan_variants(options: ProfileArguments) -> Variants:
    """Check the options and build the networks.

    Raises:
        UserError: for a network or workload that cannot be. Of several runtimes and precisions,
            pairs that do not exist are only noted.
    """
    import torch

    from dwsep_zoo.analysis.memory import inference_memory
    from dwsep_zoo.analysis.runtimes import Workload
    from dwsep_zoo.models.registry import check_room
    from dwsep_zoo.nn import CONVS

    convs = [choose(name, CONVS, "conv") for name in dict.fromkeys(options.conv)]
    batch_sizes = tuple(dict.fromkeys(options.batch_size))
    pairs, notes = _pairs(options)
    threads = options.threads or torch.get_num_threads()
    built = {name: options.build(str(options.model), name) for name in convs}
    (size, *_) = (size for _, size in built.values())
    for name, (network, _) in built.items():
        needed = inference_memory(network, size, batch_size=max(batch_sizes))
        check_room(needed, f"conv={name}, batch {max(batch_sizes)}:")
    return Variants(
        name=f"{options.model}, width {options.width_mult:g}",
        networks={name: network.eval() for name, (network, _) in built.items()},
        input_size=size,
        batch_sizes=batch_sizes,
        workloads=tuple(
            Workload(runtime, precision, batch, options.device, threads)
            for (runtime, precision), batch in product(pairs, batch_sizes)
        ),
        notes=tuple(notes),
    )


def _pairs(options: ProfileArguments) -> tuple[list[tuple[str, str]], list[str]]:
    """The pairs of runtime and precision that can be measured, and notes on the others."""
    from dwsep_zoo.analysis.runtimes import DTYPES, RUNTIMES, Workload, available_runtimes

    Workload(device=options.device).check()
    asked = options.runtimes or DEFAULT_RUNTIMES
    names = tuple(RUNTIMES) if asked == ("all",) else asked
    for name in names:
        choose(name, RUNTIMES, "runtime")
    for precision in options.precision:
        choose(precision, DTYPES, "precision")
    missing = {name: line for name, line in available_runtimes().items() if line and name in names}
    if names is options.runtimes:  # named one by one
        for name in missing:
            Workload(name).check()  # says so
    notes = [f"{name} is absent; install it with: {line}" for name, line in missing.items()]
    pairs = []
    for name, precision in product(dict.fromkeys(names), dict.fromkeys(options.precision)):
        if name in missing:
            continue
        try:
            Workload(name, precision, device=options.device).check()
        except UserError as error:
            notes.append(f"not measured: {error}")
        else:
            pairs.append((name, precision))
    if not pairs:
        raise UserError("; ".join(notes))
    return pairs, notes


def _roofline(plan: Variants, costs: Sequence[Cost], figure: Path) -> Iterator[RenderableType]:
    """Its tables and sentences; the figure is written."""
    from dwsep_zoo.analysis.bottleneck import gaps, sentence
    from dwsep_zoo.analysis.latency import compare_turns
    from dwsep_zoo.commands.profile_tables import roofline_tables
    from dwsep_zoo.report.figures import roofline_figure
    from dwsep_zoo.report.figures.svg import document

    alone = [cost.roofline for cost in costs if cost.roofline]
    layers = alone[0].only(*(one.networks[0] for one in alone))
    yield from roofline_tables(layers)
    yield from gaps(layers)
    timings = {name: cost.timings for name, cost in zip(plan.networks, costs, strict=True)}
    eager = replace(plan.workloads[0], runtime="eager")
    for name in plan.networks:
        if name != plan.reference:
            speed = None  # by the passes of the roofline
            if eager in plan.workloads:
                index = plan.workloads.index(eager)
                turns = (timings[n][index].turns for n in (plan.reference, name))
                speed = 1 / compare_turns(*turns).ratio
            yield sentence(layers, plan.reference, name, speed)
    atomic_write(figure, document(roofline_figure(layers)))
    yield f"wrote {figure}"
