"""``dwsep explain``: the arithmetic of one convolution, or of a network layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dwsep_zoo.commands.arguments import UNIT, Arguments, Conv, NetworkArguments, Number, read
from dwsep_zoo.errors import UserError
from dwsep_zoo.terminal import by, stdout_console, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from torch import nn

    from dwsep_zoo.analysis.count import Count, LayerCount
    from dwsep_zoo.analysis.receptive_field import Field as Receptive

NARROW: Mapping[str, Any] = {"box": None, "pad_edge": False, "padding": (0, 1, 0, 0)}
"""The layers of a network fit into 100 columns."""


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
    if any(argument.startswith("model=") for argument in arguments):
        _, network = read("explain", arguments, ModelArguments, ConvArguments)
        parts = explain_model(network)
    else:
        _, convolution = read("explain", arguments, ConvArguments, ModelArguments)
        parts = explain_conv(convolution)
    console = stdout_console()
    for part in parts:
        console.print(part)


def explain_conv(options: ConvArguments) -> Iterator[RenderableType]:
    """Tables and sentences about one convolution.

    Raises:
        UserError: for an even kernel.
    """
    from dwsep_zoo.analysis.arithmetic import conv_costs

    out, kernel, stride, size = options.out, options.kernel, options.stride, options.size
    if kernel % 2 == 0:
        raise UserError(f"kernel must be odd, so that the padding can be even; got {kernel}")
    costs = conv_costs(options.in_, out, kernel, stride, size)
    standard, separable = costs[0], costs[3]
    yield table(
        f"{kernel} x {kernel} convolution, {options.in_} -> {out} channels, stride {stride}, "
        f"on {size} x {size} pixels",
        ("", "weights", " ", "MACs", "of standard"),
        (
            (c.name, c.formula, f"{c.weights:,}", f"{c.macs:,}", f"{c.macs / standard.macs:.4f}")
            for c in costs
        ),
        words=("", "weights"),
        caption=f"{UNIT}; weights without biases and norms",
    )
    ratio = Fraction(1, out) + Fraction(1, kernel**2)
    yield (
        f"depthwise separable / standard = 1/N + 1/K^2 = 1/{out} + 1/{kernel**2} = {ratio} = "
        f"{float(ratio):.4f}, at any stride"
    )
    yield (
        "depthwise alone does not mix channels and spatially separable is another operator: "
        "neither stands in for the standard convolution unchanged"
    )
    if ratio < 1:
        yield (
            f"{standard.macs / separable.macs:.2f}x fewer multiply-adds; how much faster that is, "
            "only a measurement tells: a depthwise convolution waits for memory, not for arithmetic"
        )
    else:
        yield (
            "here the separable convolution is not cheaper: that takes (K^2 - 1)(N - 1) > 1, "
            f"and this is {(kernel**2 - 1) * (out - 1)}"
        )


def explain_model(options: ModelArguments) -> Iterator[RenderableType]:
    """Tables of layers, swapped units and functions, and the standard network beside them.

    Raises:
        UserError: for a network that there is not, or an image smaller than its output stride.
    """
    from dwsep_zoo.analysis.arithmetic import swapped_units
    from dwsep_zoo.analysis.receptive_field import receptive_fields

    model, cost = options.count(options.model, options.conv)
    standard, reference = options.count(options.model, "standard")
    chosen = model.build_args["conv"]
    options_of_conv = "".join(f", {k} {v}" for k, v in chosen.items() if k != "name")
    heading = (
        f"{options.model}, conv={chosen['name']}{options_of_conv}, width {options.width_mult:g}, "
        f"at {by(cost.input_size)}"
    )
    fields = receptive_fields(model, cost.input_size)
    yield _layer_table(heading, cost, fields)
    yield _unit_table(swapped_units(cost), swapped_units(reference))
    yield _kind_table(model, cost)
    yield _field_sentence(fields, cost)
    if chosen != standard.build_args["conv"]:
        yield (
            f"with conv=standard: {reference.params:,} parameters "
            f"({reference.params / cost.params:.2f}x) "
            f"and {reference.macs:,} MACs ({reference.macs / cost.macs:.2f}x)"
        )


def _layer_table(title: str, cost: Count, fields: Mapping[str, Receptive]) -> Table:
    def row(layer: LayerCount) -> Sequence[str]:
        field = fields.get(layer.name)
        stride = "" if layer.stride == (1, 1) else f" /{_side(layer.stride, between=',')}"
        return (
            layer.name,
            layer.kind,
            "x".join(map(str, layer.kernel_size)) + stride,
            "x".join(map(str, layer.out_shape)),
            _side(field.size) if field else "all",
            _side(field.step) if field else "",
            f"{layer.params:,}",
            f"{layer.macs:,}",
            f"{layer.macs / cost.macs:.1%}",
        )

    blanks = [""] * 5
    return table(
        title,
        ("layer", "kind", "kernel", "output", "field", "step", "params", "MACs", "share"),
        [
            *map(row, cost.layers),
            ("norms", *blanks, f"{_norms(cost):,}", "", ""),
            None,
            ("sum", *blanks, f"{cost.params:,}", f"{cost.macs:,}", ""),
        ],
        words=("layer", "kind", "kernel"),
        caption=f"{UNIT}; field: receptive field, and step: cumulative stride, in pixels of the "
        "image; all: the whole image",
        caption_justify="left",
        **NARROW,
    )


def _unit_table(
    units: Mapping[str, Sequence[LayerCount]], standard: Mapping[str, Sequence[LayerCount]]
) -> Table:
    from dwsep_zoo.analysis.arithmetic import unit_formula

    def row(name: str, layers: Sequence[LayerCount]) -> Sequence[str]:
        macs, before = (sum(x.macs for x in found) for found in (layers, standard[name]))
        pixels = dict.fromkeys("x".join(map(str, layer.out_shape[1:])) for layer in layers)
        return name, unit_formula(layers), ", ".join(pixels), f"{macs:,}", f"{macs / before:.4f}"

    return table(
        "what conv= swaps: weights x output pixels = MACs",
        ("unit", "weights", "pixels", "MACs", "of standard"),
        (row(name, layers) for name, layers in units.items()),
        words=("unit", "weights"),
        caption="without gates, norms and biases; pixels: of each factor, where they differ",
        caption_justify="left",
        **NARROW,
    )


def _kind_table(model: nn.Module, cost: Count) -> Table:
    from dwsep_zoo.analysis.units import units
    from dwsep_zoo.schema.roofline import KINDS

    functions = {unit.name: unit.kind for unit in units(model)}
    layers: dict[str, list[LayerCount]] = {}
    for layer in cost.layers:
        name = layer.name
        while name not in functions:  # a layer of a gate or of a mixed convolution
            name = name.rpartition(".")[0]
        layers.setdefault(functions[name], []).append(layer)

    def row(function: str, own: Sequence[LayerCount]) -> Sequence[str]:
        params, macs = sum(x.params for x in own), sum(x.macs for x in own)
        shares = f"{params / cost.params:.1%}", f"{macs / cost.macs:.1%}"
        return function, str(len(own)), f"{params:,}", shares[0], f"{macs:,}", shares[1]

    norms = _norms(cost)
    return table(
        "by function",
        ("", "layers", "parameters", "share", "MACs", "share"),
        [
            *(row(kind, layers[kind]) for kind in KINDS if kind in layers),
            ("norms", "", f"{norms:,}", f"{norms / cost.params:.1%}", "", ""),
        ],
    )


def _norms(cost: Count) -> int:
    return cost.params - sum(layer.params for layer in cost.layers)


def _field_sentence(fields: Mapping[str, Receptive], cost: Count) -> str:
    last = list(fields.values())[-1]
    gates = (
        "; a squeeze-and-excite gate shows all of it to every pixel, which is left out here"
        if any(".gate." in layer.name for layer in cost.layers)
        else ""
    )
    return (
        f"a pixel of the last feature map sees {by(last.size)} pixels, its neighbour "
        f"{last.step[0]} further; the image has {by(cost.input_size[1:])}{gates}"
    )


def _side(size: Iterable[int], between: str = "x") -> str:
    """One number for both sides where they are equal."""
    return between.join(map(str, dict.fromkeys(size)))
