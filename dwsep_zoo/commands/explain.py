"""``dwsep explain``: the arithmetic of one convolution, or of a network layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, Conv, NetworkArguments, Number, read
from dwsep_zoo.commands.network import UNIT, by, counted_network
from dwsep_zoo.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from torch import nn

    from dwsep_zoo.analysis.count import Count, LayerCount
    from dwsep_zoo.analysis.receptive_field import Field as Receptive


class ConvArguments(Arguments):
    """Explain one convolution from M to N channels."""

    in_: Number = Field(3, alias="in", description="input channels, M")
    out: Number = Field(3, description="output channels, N")
    kernel: Number = Field(3, description="side of the window, K, odd")
    stride: Number = Field(1, description="stride of the whole operator")
    size: Number = Field(224, description="side of the input in pixels")


class ModelArguments(NetworkArguments):
    """Explain a network, with model=NAME."""

    model: str = Field(description="name of the network, see dwsep list")
    conv: Conv = Field("depthwise_separable", description="operator of its units")


def run(arguments: list[str]) -> None:
    from dwsep_zoo.terminal import stdout_console

    if any(argument.startswith("model=") for argument in arguments):
        _, network = read("explain", arguments, ModelArguments, ConvArguments)
        parts = explain_model(network)
    else:
        _, convolution = read("explain", arguments, ConvArguments, ModelArguments)
        parts = explain_conv(convolution)
    console = stdout_console()
    for part in parts:
        console.print(part)


def explain_conv(options: ConvArguments) -> list[RenderableType]:
    """Tables and sentences about one convolution.

    Raises:
        UserError: for an even kernel.
    """
    from rich.table import Table

    from dwsep_zoo.analysis.arithmetic import conv_costs

    in_chans, out, kernel = options.in_, options.out, options.kernel
    stride, size = options.stride, options.size
    if kernel % 2 == 0:
        raise UserError(f"kernel must be odd, so that the padding can be even; got {kernel}")
    costs = conv_costs(in_chans, out, kernel, stride, size)
    standard, separable = costs[0], costs[3]
    table = Table(
        title=f"{kernel} x {kernel} convolution, {in_chans} -> {out} channels, stride {stride}, "
        f"on {size} x {size} pixels",
        caption=f"{UNIT}; weights without biases and norms",
    )
    table.add_column("")
    table.add_column("weights")
    for heading in ("", "MACs", "of standard"):
        table.add_column(heading, justify="right")
    for cost in costs:
        table.add_row(
            cost.name,
            cost.formula,
            f"{cost.weights:,}",
            f"{cost.macs:,}",
            f"{cost.macs / standard.macs:.4f}",
        )
    ratio = Fraction(1, out) + Fraction(1, kernel**2)
    lines = [
        f"depthwise separable / standard = 1/N + 1/K^2 = 1/{out} + 1/{kernel**2} = {ratio} = "
        f"{float(ratio):.4f}, at any stride",
        "depthwise alone does not mix channels and spatially separable is another operator: "
        "neither stands in for the standard convolution unchanged",
    ]
    if ratio < 1:
        lines.append(
            f"{standard.macs / separable.macs:.2f}x fewer multiply-adds; how much faster that is, "
            "only a measurement tells: a depthwise convolution waits for memory, not for arithmetic"
        )
    else:
        lines.append(
            "here the separable convolution is not cheaper: that takes (K^2 - 1)(N - 1) > 1, "
            f"and this is {(kernel**2 - 1) * (out - 1)}"
        )
    return [table, *lines]


def explain_model(options: ModelArguments) -> list[RenderableType]:
    """Tables of layers, swapped units and functions, and the standard network beside them.

    Raises:
        UserError: for a network that there is not, or an image smaller than its output stride.
    """
    from dwsep_zoo.analysis.arithmetic import swapped_units
    from dwsep_zoo.analysis.receptive_field import receptive_fields

    model, cost = counted_network(options.model, options.conv, options)
    standard, reference = counted_network(options.model, "standard", options)
    chosen = model.build_args["conv"]
    options_of_conv = "".join(f", {k} {v}" for k, v in chosen.items() if k != "name")
    heading = (
        f"{options.model}, conv={chosen['name']}{options_of_conv}, width {options.width_mult:g}, "
        f"at {by(cost.input_size)}"
    )
    fields = receptive_fields(model, cost.input_size)
    parts: list[RenderableType] = [
        _layer_table(heading, cost, fields),
        _unit_table(swapped_units(model, cost), swapped_units(standard, reference)),
        _kind_table(model, cost),
        _field_sentence(fields, cost),
    ]
    if chosen != standard.build_args["conv"]:
        parts.append(
            f"with conv=standard: {reference.params:,} parameters "
            f"({reference.params / cost.params:.2f}x) "
            f"and {reference.macs:,} MACs ({reference.macs / cost.macs:.2f}x)"
        )
    return parts


def _layer_table(title: str, cost: Count, fields: Mapping[str, Receptive]) -> Table:
    from rich.table import Table

    table = Table(
        title=title,
        caption=f"{UNIT}; field: receptive field, and step: cumulative stride, in pixels of the "
        "image; all: the whole image",
        caption_justify="left",
        box=None,  # the layers of a network fit into 100 columns
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer", overflow="fold", min_width=12)
    for heading in ("kind", "kernel"):
        table.add_column(heading, no_wrap=True)
    for heading in ("output", "field", "step", "params", "MACs", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in cost.layers:
        field = fields.get(layer.name)
        table.add_row(
            layer.name,
            layer.kind,
            "x".join(map(str, layer.kernel_size)) + _stride(layer.stride),
            "x".join(map(str, layer.out_shape)),
            _side(field.size) if field else "all",
            _side(field.step) if field else "",
            f"{layer.params:,}",
            f"{layer.macs:,}",
            f"{layer.macs / cost.macs:.1%}",
        )
    blanks = [""] * 5
    norms = cost.params - sum(layer.params for layer in cost.layers)
    table.add_row("norms", *blanks, f"{norms:,}", "", "")
    table.add_section()
    table.add_row("sum", *blanks, f"{cost.params:,}", f"{cost.macs:,}", "")
    return table


def _unit_table(
    units: Mapping[str, Sequence[LayerCount]], standard: Mapping[str, Sequence[LayerCount]]
) -> Table:
    from rich.table import Table

    from dwsep_zoo.analysis.arithmetic import unit_formula

    table = Table(
        title="what conv= swaps: weights x output pixels = MACs",
        caption="without gates, norms and biases; pixels: of each factor, where they differ",
        caption_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("unit", no_wrap=True)
    table.add_column("weights", overflow="fold")
    for heading in ("pixels", "MACs", "of standard"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, layers in units.items():
        macs = sum(layer.macs for layer in layers)
        table.add_row(
            name,
            unit_formula(layers),
            ", ".join(dict.fromkeys(_side(layer.out_shape[1:], square=True) for layer in layers)),
            f"{macs:,}",
            f"{macs / sum(layer.macs for layer in standard[name]):.4f}",
        )
    return table


def _kind_table(model: nn.Module, cost: Count) -> Table:
    from rich.table import Table

    from dwsep_zoo.analysis.units import KINDS, units

    functions = {unit.name: unit.kind for unit in units(model)}
    layers: dict[str, list[LayerCount]] = {}
    for layer in cost.layers:
        name = layer.name
        while name not in functions:  # a layer of a gate or of a mixed convolution
            name = name.rpartition(".")[0]
        layers.setdefault(functions[name], []).append(layer)
    norms = cost.params - sum(layer.params for layer in cost.layers)
    table = Table(title="by function")
    for heading in ("", "layers", "parameters", "share", "MACs", "share"):
        table.add_column(heading, justify="right" if heading else "left")
    for function in sorted(layers, key=KINDS.index):
        own = layers[function]
        params, macs = sum(x.params for x in own), sum(x.macs for x in own)
        table.add_row(
            function,
            str(len(own)),
            f"{params:,}",
            f"{params / cost.params:.1%}",
            f"{macs:,}",
            f"{macs / cost.macs:.1%}",
        )
    table.add_row("norms", "", f"{norms:,}", f"{norms / cost.params:.1%}", "", "")
    return table


def _field_sentence(fields: Mapping[str, Receptive], cost: Count) -> str:
    last = list(fields.values())[-1]
    _, height, width = cost.input_size
    gates = (
        "; a squeeze-and-excite gate shows all of it to every pixel, which is left out here"
        if any(".gate." in layer.name for layer in cost.layers)
        else ""
    )
    return (
        f"a pixel of the last feature map sees {by(last.size)} pixels, its neighbour "
        f"{last.rows.step} further; the image has {height} x {width}{gates}"
    )


def _stride(stride: tuple[int, int]) -> str:
    return "" if stride == (1, 1) else f" /{_side(stride, between=',')}"


def _side(size: Sequence[int], *, square: bool = False, between: str = "x") -> str:
    """One number for both sides where they are equal."""
    if square or size[0] != size[1]:
        return between.join(map(str, size))
    return str(size[0])
