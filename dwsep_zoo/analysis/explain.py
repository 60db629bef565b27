"""The arithmetic of one convolution, and of a network layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table
from torch import nn

from dwsep_zoo.analysis.count import Count, LayerCount, count
from dwsep_zoo.analysis.receptive_field import Field, receptive_fields
from dwsep_zoo.analysis.units import KINDS
from dwsep_zoo.analysis.units import units as functional_units
from dwsep_zoo.errors import UserError
from dwsep_zoo.models import ConvNet, build_model, create_architecture
from dwsep_zoo.models import list_models as model_names
from dwsep_zoo.nn import create_conv
from dwsep_zoo.weights.catalog import available, origins

UNIT = "1 MAC = one multiply-add = 2 FLOPs"


@dataclass(frozen=True)
class Cost:
    """What one way of going from M to N channels costs."""

    name: str
    formula: str
    weights: int
    macs: int


def conv_costs(
    in_chans: int, out_chans: int, kernel_size: int, stride: int = 1, size: int = 224
) -> list[Cost]:
    """Weights and multiply-adds of the standard convolution and of its factorisations.

    Args:
        in_chans: M.
        out_chans: N.
        kernel_size: K, odd.
        stride: of the whole operator.
        size: height and width of the input in pixels; the padding keeps size / stride.
    """
    m, n, k = in_chans, out_chans, kernel_size
    out = -(-size // stride)

    def same(name: str, formula: str, weights: int) -> Cost:
        return Cost(name, formula, weights, weights * out * out)

    columns = k * m * n  # K x 1, stride (s, 1), M to N: its output is still wide
    rows = k * n * n  # 1 x K, stride (1, s), N to N
    return [
        same("standard", "K^2 M N", k * k * m * n),
        same("depthwise alone", "K^2 M", k * k * m),
        same("pointwise alone", "M N", m * n),
        same("depthwise separable", "K^2 M + M N", k * k * m + m * n),
        Cost(
            "spatially separable",
            "K M N + K N N",
            columns + rows,
            columns * out * size + rows * out * out,
        ),
    ]


def explain_conv(
    in_chans: int, *, out: int, kernel: int, stride: int = 1, size: int = 224
) -> list[RenderableType]:
    """Tables and sentences about one convolution, for a terminal.

    Raises:
        UserError: for numbers that no convolution has.
    """
    _check_whole({"in": in_chans, "out": out, "kernel": kernel, "stride": stride, "size": size})
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


def explain_model(
    name: str,
    *,
    conv: Any = "depthwise_separable",
    width_mult: float = 1.0,
    size: int | None = None,
    output_stride: int = 32,
    num_classes: int = 1000,
    in_chans: int = 3,
) -> list[RenderableType]:
    """A network for a terminal: every layer with its shape, receptive field and cost; every unit
    that ``conv`` swaps with its arithmetic; the sums by function; the standard network beside it.

    Args:
        name: of the model.
        conv: as for :func:`dwsep_zoo.create_model`.
        width_mult: factor on every width.
        size: height and width of the image in pixels; ``None``: the paper's.
        output_stride: 32 is the paper's.
        num_classes: outputs of the classifier.
        in_chans: channels of the image.

    Raises:
        UserError: for a network that there is not, or an image smaller than its output stride.
    """
    options: dict[str, Any] = {
        "width_mult": width_mult,
        "output_stride": output_stride,
        "num_classes": num_classes,
        "in_chans": in_chans,
    }
    model, cost = _build(name, conv, size, **options)
    standard, reference = _build(name, "standard", size, **options)
    chosen = model.build_args["conv"]
    options_of_conv = "".join(f", {k} {v}" for k, v in chosen.items() if k != "name")
    heading = (
        f"{name}, conv={chosen['name']}{options_of_conv}, width {width_mult:g}, "
        f"at {_by(cost.input_size)}"
    )
    fields = receptive_fields(model, cost.input_size)
    parts: list[RenderableType] = [
        _layer_table(heading, cost, fields),
        _unit_table(_units(model, cost), _units(standard, reference)),
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


def _layer_table(title: str, cost: Count, fields: Mapping[str, Field]) -> Table:
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


def unit_formula(layers: Sequence[LayerCount]) -> str:
    """The weights of a unit with its numbers filled in: ``3*3*64 + 64*128 = 8,768``."""
    weights = sum(layer.macs // math.prod(layer.out_shape[1:]) for layer in layers)
    return " + ".join(_factors(layer) for layer in layers) + f" = {weights:,}"


def _factors(layer: LayerCount) -> str:
    window = layer.kernel_size if layer.kernel_size != (1, 1) else ()
    inputs = layer.in_shape[0] // layer.groups  # of one filter
    return "*".join(map(str, (*window, *((inputs,) if inputs > 1 else ()), layer.out_shape[0])))


def _units(model: nn.Module, cost: Count) -> dict[str, list[LayerCount]]:
    """The layers of every operator that ``conv=`` put in, without those of its gate."""
    operators = {
        name
        for name, module in model.named_modules()
        if name.split(".")[-1] == "conv" and isinstance(module, nn.Sequential)
    }
    layers: dict[str, list[LayerCount]] = {}
    for layer in cost.layers:
        unit, inside, rest = layer.name.rpartition("conv.")
        if inside and unit + "conv" in operators and not rest.startswith("gate."):
            layers.setdefault(unit + "conv", []).append(layer)
    return layers


def _kind_table(model: nn.Module, cost: Count) -> Table:
    functions = {unit.name: unit.kind for unit in functional_units(model)}
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


def _field_sentence(fields: Mapping[str, Field], cost: Count) -> str:
    last = list(fields.values())[-1]
    _, height, width = cost.input_size
    gates = (
        "; a squeeze-and-excite gate shows all of it to every pixel, which is left out here"
        if any(".gate." in layer.name for layer in cost.layers)
        else ""
    )
    return (
        f"a pixel of the last feature map sees {_by(last.size)} pixels, its neighbour "
        f"{last.rows.step} further; the image has {height} x {width}{gates}"
    )


def _stride(stride: tuple[int, int]) -> str:
    return "" if stride == (1, 1) else f" /{_side(stride, between=',')}"


def _side(size: Sequence[int], *, square: bool = False, between: str = "x") -> str:
    """One number for both sides where they are equal."""
    if square or size[0] != size[1]:
        return between.join(map(str, size))
    return str(size[0])


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def list_table(patterns: Sequence[str], *, conv: Any, width_mult: float) -> list[RenderableType]:
    """The models that match, each at its paper's resolution; of a single one, its weights too.

    The papers' accuracies and all published weights are of the separable networks: with another
    conv type there are none.
    """
    names = [name for pattern in patterns for name in model_names(pattern)]
    if not names:
        raise UserError(
            f"no model matches {' '.join(patterns)!r}; there are {', '.join(model_names())}"
        )
    published = create_conv(conv) == create_conv("depthwise_separable")
    table = Table(
        title=f"conv={conv}, width {width_mult:g}, 1000 classes",
        caption=f"{UNIT}; top-1: the paper's, at width 1" if published else UNIT,
    )
    table.add_column("model", no_wrap=True)
    for heading in ("pixels", "parameters", "MACs (M)", *(["top-1"] if published else [])):
        table.add_column(heading, justify="right")
    if published:
        table.add_column("weights")
    for name in dict.fromkeys(names):
        _, cost = _build(name, conv, None, width_mult=width_mult)
        top1 = create_architecture(name).top1
        cells = [name, str(cost.input_size[-1]), f"{cost.params:,}", f"{cost.macs / 1e6:,.2f}"]
        if published:
            cells += [f"{top1:.1f}" if top1 else "", " ".join(origins(name))]
        table.add_row(*cells)
    if not published:
        return [table]
    if len(set(names)) > 1:
        return [table, "the weights of one model: dwsep list mobilenet_v2"]
    return [table, *(f"pretrained={weights}" for weights in available(names[0]))]


def _check_whole(numbers: Mapping[str, Any], least: int = 1) -> None:
    for key, value in numbers.items():
        if not isinstance(value, int) or value < least:
            raise UserError(f"{key} must be a whole number from {least} up; got {value!r}")


def _build(
    name: str,
    conv: Any,
    size: int | None,
    *,
    width_mult: float,
    num_classes: int = 1000,
    in_chans: int = 3,
    **options: Any,
) -> tuple[ConvNet, Count]:
    if size is not None:
        _check_whole({"size": size})
    _check_whole({"in_chans": in_chans})
    _check_whole({"num_classes": num_classes}, least=0)
    if not isinstance(width_mult, int | float):
        raise UserError(f"width_mult must be a number greater than 0; got {width_mult!r}")
    with torch.device("meta"):
        # Stochastic depth costs nothing, but its module comes from timm, which is slow to import.
        model = build_model(
            name,
            conv=conv,
            width_mult=width_mult,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_path_rate=0.0,
            **options,
        )
    chans, *paper = model.default_cfg["input_size"]
    height, width = (size, size) if size else paper
    if height < model.output_stride:
        raise UserError(
            f"images of {height} pixels are smaller than the output stride {model.output_stride}; "
            "set output_stride=8 or a larger size"
        )
    return model, count(model, (chans, height, width))
