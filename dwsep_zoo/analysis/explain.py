"""The arithmetic of one convolution, and of a network layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table

from dwsep_zoo.analysis.count import Count, count
from dwsep_zoo.errors import UserError
from dwsep_zoo.models import create_architecture, create_model
from dwsep_zoo.models import list_models as model_names
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
    for key, value in {
        "in": in_chans,
        "out": out,
        "kernel": kernel,
        "stride": stride,
        "size": size,
    }.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{key} must be a whole number from 1 up; got {value!r}")
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
    """A network layer by layer, its sums by kind, and the same network with other convolutions."""
    options = {
        "width_mult": width_mult,
        "output_stride": output_stride,
        "num_classes": num_classes,
        "in_chans": in_chans,
    }
    cost = _count(name, conv, size, **options)
    chans, height, width = cost.input_size
    table = Table(
        title=f"{name}, conv={conv}, width {width_mult:g}, at {chans} x {height} x {width}",
        caption=UNIT,
        box=None,  # the layers of a network fit into 80 columns
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("layer", overflow="fold", min_width=12)
    for heading in ("kind", "kernel"):
        table.add_column(heading, no_wrap=True)
    for heading in ("output", "parameters", "MACs", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in cost.layers:
        table.add_row(
            layer.name,
            layer.kind,
            "x".join(map(str, layer.kernel_size)) + _stride(layer.stride),
            "x".join(map(str, layer.out_shape)),
            f"{layer.params:,}",
            f"{layer.macs:,}",
            f"{layer.macs / cost.macs:.1%}",
        )
    norms = cost.params - sum(layer.params for layer in cost.layers)
    table.add_row("norms", "", "", "", f"{norms:,}", "", "")
    table.add_section()
    table.add_row("sum", "", "", "", f"{cost.params:,}", f"{cost.macs:,}", "")

    kinds = Table(title="by kind of layer")
    for heading in ("kind", "layers", "parameters", "share", "MACs", "share"):
        kinds.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind in dict.fromkeys(layer.kind for layer in cost.layers):
        layers = [layer for layer in cost.layers if layer.kind == kind]
        params, macs = sum(x.params for x in layers), sum(x.macs for x in layers)
        kinds.add_row(
            kind,
            str(len(layers)),
            f"{params:,}",
            f"{params / cost.params:.1%}",
            f"{macs:,}",
            f"{macs / cost.macs:.1%}",
        )
    reference = _count(name, "standard", size, **options)
    sentence = (
        f"with conv=standard: {reference.params:,} parameters "
        f"({reference.params / cost.params:.2f}x) "
        f"and {reference.macs:,} MACs ({reference.macs / cost.macs:.2f}x)"
    )
    return [table, kinds, sentence]


def _stride(stride: tuple[int, int]) -> str:
    if stride == (1, 1):
        return ""
    return f" /{stride[0]}" if stride[0] == stride[1] else f" /{stride[0]},{stride[1]}"


def list_table(patterns: Sequence[str], *, conv: Any, width_mult: float) -> list[RenderableType]:
    """The models that match, each at its paper's resolution; of a single one, its weights too."""
    names = [name for pattern in patterns for name in model_names(pattern)]
    if not names:
        raise UserError(
            f"no model matches {' '.join(patterns)!r}; there are {', '.join(model_names())}"
        )
    table = Table(
        title=f"conv={conv}, width {width_mult:g}, 1000 classes",
        caption=f"{UNIT}; top-1: the paper's, of conv=depthwise_separable at width 1",
    )
    table.add_column("model", no_wrap=True)
    for heading in ("pixels", "parameters", "MACs (M)", "top-1"):
        table.add_column(heading, justify="right")
    table.add_column("weights")
    for name in dict.fromkeys(names):
        cost = _count(name, conv, None, width_mult=width_mult)
        top1 = create_architecture(name).top1
        table.add_row(
            name,
            str(cost.input_size[-1]),
            f"{cost.params:,}",
            f"{cost.macs / 1e6:,.2f}",
            f"{top1:.1f}" if top1 else "",
            " ".join(origins(name)),
        )
    if len(set(names)) > 1:
        return [table, "the weights of one model: dwsep list mobilenet_v2"]
    return [table, *(f"pretrained={weights}" for weights in available(names[0]))]


def _count(name: str, conv: Any, size: int | None, **options: Any) -> Count:
    with torch.device("meta"):
        # Stochastic depth costs nothing, but its module comes from timm, which is slow to import.
        model = create_model(name, conv=conv, drop_path_rate=0.0, **options)
    chans, *paper = model.default_cfg["input_size"]
    height, width = (size, size) if size else paper
    if height < model.output_stride:
        raise UserError(
            f"images of {height} pixels are smaller than the output stride {model.output_stride}; "
            "set output_stride=8 or a larger size"
        )
    return count(model, (chans, height, width))
