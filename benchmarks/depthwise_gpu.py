"""Depthwise convolutions on a GPU: this project's Triton kernels against PyTorch's.

Every distinct depthwise layer of MobileNetV1, V2 and EfficientNet-B0, at 224 pixels with batch 128
and at CIFAR size with batch 1024, bfloat16, forward and backward (both gradients):

* ours: ``dwsep_zoo.ops.triton_depthwise``, channels_last.
* cudnn: PyTorch with channels_last and cuDNN's choice by benchmark.
* native: PyTorch's own kernels, which need NCHW; the change of layout is not timed.

    python benchmarks/depthwise_gpu.py             # prints, and writes results/depthwise_gpu.md
    python benchmarks/depthwise_gpu.py --compiled  # also: relu6(x * scale + shift) in front, in our
                                                   # kernel, and by torch.compile before cuDNN's
    python benchmarks/depthwise_gpu.py --tune      # also: tiles that beat the rule by 3 % or more

A time is that of a CUDA graph divided by its calls. The calls use different tensors, together
larger than the GPU's cache, so there is no launch overhead and the cache is cold. The sides take
turns, and a ratio is the median over turns. GB/s count the necessary traffic: input and output once
forward; gradient, input and its gradient once backward. Results are compared with cuDNN's first.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep_zoo import create_model
from dwsep_zoo.nn import is_depthwise
from dwsep_zoo.ops import cpu, triton_common, triton_depthwise
from dwsep_zoo.ops.triton_depthwise import Prologue, Tile

NETWORKS = ("mobilenet_v1", "mobilenet_v2", "efficientnet_b0")
SIZES = ((224, 128, 32), (32, 1024, 8))  # pixels, batch, output stride
DEVICE = "cuda"
DTYPE = torch.bfloat16
COLD_BYTES = 512 * 2**20  # several times the cache of any GPU
MIN_CALLS = 8  # in a graph
NHWC = torch.channels_last
Call = Callable[[int], object]
"""The work of one side on the i-th set of tensors."""


@dataclass(frozen=True)
class Layer:
    chans: int
    height: int
    width: int
    kernel_size: int
    stride: int
    padding: int

    def __str__(self) -> str:
        size = f"{self.chans} x {self.height} x {self.width}"
        return f"{size}, k {self.kernel_size}, s {self.stride}"


def depthwise_layers(name: str, pixels: int, output_stride: int) -> Counter[Layer]:
    """Return the distinct depthwise convolutions of a network and their numbers."""
    layers: Counter[Layer] = Counter()

    def note(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, chans, height, width = inputs[0].shape
        sizes = (module.kernel_size[0], module.stride[0], int(module.padding[0]))
        layers[Layer(chans, height, width, *sizes)] += 1

    with torch.device("meta"):
        model: nn.Module = create_model(name, output_stride=output_stride).eval()
        for module in model.modules():
            if is_depthwise(module):
                module.register_forward_hook(note)
        with torch.no_grad():
            model(torch.empty(1, 3, pixels, pixels))
    return layers


class Tensors:
    """Enough sets of tensors for one layer to make the cache cold."""

    def __init__(self, layer: Layer, batch: int) -> None:
        self.layer = layer
        k, s, p = layer.kernel_size, layer.stride, layer.padding
        height, width = ((n + 2 * p - k) // s + 1 for n in (layer.height, layer.width))
        x_shape = (batch, layer.chans, layer.height, layer.width)
        y_shape = (batch, layer.chans, height, width)
        x_bytes, y_bytes = (math.prod(shape) * DTYPE.itemsize for shape in (x_shape, y_shape))
        self.forward_bytes, self.backward_bytes = x_bytes + y_bytes, 2 * x_bytes + y_bytes
        count = math.ceil(COLD_BYTES / self.forward_bytes) + 1
        self.x = [self._draw(x_shape) for _ in range(count)]
        self.grad = [self._draw(y_shape) for _ in range(count)]
        self.weight = torch.randn(layer.chans, 1, k, k, device=DEVICE).to(DTYPE)
        self.scale, self.shift = torch.randn(2, layer.chans, device=DEVICE)
        self.calls = max(MIN_CALLS, count)

    @staticmethod
    def _draw(shape: tuple[int, ...]) -> Tensor:
        x = torch.empty(shape, dtype=DTYPE, device=DEVICE, memory_format=NHWC)
        return x.normal_()

    def to_nchw(self) -> tuple[list[Tensor], list[Tensor]]:
        return [x.contiguous() for x in self.x], [grad.contiguous() for grad in self.grad]


def forward_sides(t: Tensors) -> dict[str, Call]:
    shape, count = (t.layer.stride, t.layer.padding), len(t.x)
    nchw, _ = t.to_nchw()

    def native(i: int) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):
            return cpu.aten_forward(nchw[i % count], t.weight, *shape)

    return {
        "ours": lambda i: triton_depthwise.forward(t.x[i % count], t.weight, *shape),
        "cudnn": lambda i: cpu.aten_forward(t.x[i % count], t.weight, *shape),
        "native": native,
    }


def backward_sides(t: Tensors) -> dict[str, Call]:
    shape, count = (t.layer.stride, t.layer.padding), len(t.x)
    nchw, nchw_grad = t.to_nchw()
    stride, padding = shape
    own = partial(cpu.aten_backward, stride=stride, padding=(padding, padding), mask=(True, True))

    def native(i: int) -> tuple[Tensor, Tensor]:
        with torch.backends.cudnn.flags(enabled=False):
            return own(nchw_grad[i % count], nchw[i % count], t.weight)

    return {
        "ours": lambda i: triton_depthwise.backward(
            t.grad[i % count], t.x[i % count], t.weight, *shape
        )[:2],
        "cudnn": lambda i: own(t.grad[i % count], t.x[i % count], t.weight),
        "native": native,
    }


def prologue_sides(t: Tensors) -> dict[str, Call]:
    """The forward pass with ``relu6(x * scale + shift)`` before it."""
    shape, count = (t.layer.stride, t.layer.padding), len(t.x)
    prologue = Prologue(t.scale, t.shift, "relu6")
    torch._dynamo.reset()  # compile each layer for its own shape

    @torch.compile(dynamic=False)
    def compiled(x: Tensor) -> Tensor:
        t_ = F.relu6(x * t.scale[:, None, None] + t.shift[:, None, None]).to(DTYPE)
        return cpu.aten_forward(t_, t.weight, *shape)

    return {
        "ours": lambda i: triton_depthwise.forward(t.x[i % count], t.weight, *shape, prologue),
        "compiled": lambda i: compiled(t.x[i % count]),
    }


def check(sides: dict[str, Call], layer: Layer) -> None:
    """Stop if a side's result differs from that of the second one."""
    results = {name: call(0) for name, call in sides.items()}
    oracle = list(results.values())[1]
    for name, result in results.items():
        pairs = zip(_tensors(result), _tensors(oracle), strict=False)
        for got, want in pairs:
            error = (got.float() - want.float()).abs().max() / want.float().abs().max()
            if not error < 0.02:  # the rounding of bfloat16 sums; NaN fails too
                raise SystemExit(f"{name} is wrong for {layer}: relative error {error:.3g}")


def _tensors(result: object) -> list[Tensor]:
    parts = result if isinstance(result, (tuple, list)) else [result]
    return [part for part in parts if isinstance(part, Tensor)]


def record(call: Call, calls: int) -> torch.cuda.CUDAGraph:
    """Capture a graph of ``calls`` calls, after warm-up calls that compile and select kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(3):
            call(i)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(i)
    return graph


def replay_us(graph: torch.cuda.CUDAGraph, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3 / calls


def measure(sides: dict[str, Call], calls: int, rounds: int) -> dict[str, list[float]]:
    """Measure microseconds per call of each side, one value per turn, in alternating order."""
    graphs = {name: record(call, calls) for name, call in sides.items()}
    for graph in graphs.values():
        graph.replay()
    torch.cuda.synchronize()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(graphs) if turn % 2 else reversed(list(graphs)):
            times[name].append(replay_us(graphs[name], calls))
    return times


def ratio(times: dict[str, list[float]], other: str) -> float:
    """Return the speed of ours over that of a side."""
    return statistics.median(b / a for a, b in zip(times["ours"], times[other], strict=True))


def copy_gb_per_s() -> float:
    """Measure the memory bandwidth with a large copy."""
    source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    graph = record(lambda i: target.copy_(source), MIN_CALLS)
    times = [replay_us(graph, MIN_CALLS) for _ in range(5)]
    return 2 * source.numel() / statistics.median(times) / 1e3


def faster_tile(t: Tensors, backward: bool, rounds: int) -> str:
    """Find the fastest tile among those with one size of the rule's tile halved or doubled."""
    layer, count = t.layer, len(t.x)
    k, s, p = layer.kernel_size, layer.stride, layer.padding
    batch = len(t.x[0])
    if backward:
        cells = (-(-layer.height // s), -(-layer.width // s))
        rule = triton_depthwise.backward_tile(batch, layer.chans, *cells, k, s)
    else:
        height, width = t.grad[0].shape[2:]
        rule = triton_depthwise.forward_tile(batch, layer.chans, height, width, k, s)

    def call(tile: Tile) -> Call:
        if backward:
            return lambda i: triton_depthwise.backward(
                t.grad[i % count], t.x[i % count], t.weight, s, p, tile=tile
            )
        return lambda i: triton_depthwise.forward(t.x[i % count], t.weight, s, p, tile=tile)

    tiles = {str(rule): rule}
    for field in ("rows", "strips", "chans", "warps"):
        for value in (getattr(rule, field) // 2, getattr(rule, field) * 2):
            if value >= 1 and not (field == "warps" and value > 16):
                tile = replace(rule, **{field: value})
                tiles[str(tile)] = tile
    times = measure({name: call(tile) for name, tile in tiles.items()}, t.calls, rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(medians, key=medians.__getitem__)
    gain = medians[str(rule)] / medians[best]
    return f"{best}: {gain:.2f} times as fast as {rule}" if gain > 1.03 else ""


Sides = Callable[[Tensors], dict[str, Call]]


def table(
    layers: Counter[Layer], batch: int, direction: str, sides: Sides, peak: float, rounds: int
) -> list[str]:
    """Return a row per layer, and their sum weighted by occurrence in the network."""
    totals: dict[str, float] = {}
    lines: list[str] = []
    left_out: list[str] = []
    for layer, occurrences in layers.items():
        tensors = Tensors(layer, batch)
        reason = triton_depthwise.covered(tensors.x[0], tensors.weight, layer.stride, layer.padding)
        if reason is not None:
            left_out.append(f"{layer} is not covered: {reason}")
            continue
        calls = sides(tensors)
        check(calls, layer)
        times = measure(calls, tensors.calls, rounds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        moved = tensors.backward_bytes if direction == "backward" else tensors.forward_bytes
        speed = moved / medians["ours"] / 1e3
        others = [name for name in times if name != "ours"]
        cells = [
            *(f"{medians[name]:.1f}" for name in times),
            *(f"{ratio(times, name):.2f}" for name in others),
            f"{speed:.0f}",
            f"{100 * speed / peak:.0f}",
        ]
        if not lines:
            heads = [*(f"{name} us" for name in times), *(f"{name} / ours" for name in others)]
            lines.append(f"| {direction} | n | {' | '.join(heads)} | GB/s | % of copy |")
            lines.append("|---|--:" + "|--:" * (len(cells)) + "|")
        lines.append(f"| {layer} | {occurrences} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
        for name, value in medians.items():
            totals[name] = totals.get(name, 0.0) + occurrences * value
    sums = [f"{value:.0f}" for value in totals.values()]
    sums += [f"{totals[name] / totals['ours']:.2f}" for name in totals if name != "ours"]
    lines.append(f"| all of these, n times | | {' | '.join(sums)} | | |")
    return [*lines, *("\n" + line for line in left_out)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Depthwise kernels on a GPU")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compiled", action="store_true", help="prologue against torch.compile")
    parser.add_argument("--tune", action="store_true", help="look for tiles better than the rule's")
    options = parser.parse_args(arguments)
    if (reason := triton_common.unavailable()) is not None or not torch.cuda.is_available():
        raise SystemExit(f"this benchmark needs an NVIDIA GPU: {reason or 'there is none'}")

    torch.backends.cudnn.benchmark = True
    peak = copy_gb_per_s()
    tables: list[tuple[str, Sides]] = [("forward", forward_sides), ("backward", backward_sides)]
    if options.compiled:
        tables.append(("forward with relu6(x * scale + shift)", prologue_sides))
    lines = ["# Depthwise convolutions on a GPU", ""]
    for pixels, batch, output_stride in SIZES:
        for name in options.networks:
            layers = depthwise_layers(name, pixels, output_stride)
            lines += [f"## {name}, {pixels} pixels, batch {batch}", ""]
            print(lines[-2], flush=True)
            for direction, sides in tables:
                lines += [*table(layers, batch, direction, sides, peak, options.rounds), ""]
            if options.tune:
                for layer in layers:
                    tensors = Tensors(layer, batch)
                    for backward in (False, True):
                        if better := faster_tile(tensors, backward, options.rounds):
                            direction = "backward" if backward else "forward"
                            lines.append(f"- {layer}, {direction}: {better}")
                            print(lines[-1], flush=True)
                lines.append("")
    lines += [
        f"Medians of {options.rounds} turns, the sides in turns; {torch.cuda.get_device_name()}, "
        f"{DTYPE}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}; a copy moves "
        f"{peak:.0f} GB/s, read and written.",
        "",
        "Command: `python benchmarks/depthwise_gpu.py`. What the columns are stands in it.",
        "",
    ]
    text = "\n".join(lines)
    (Path(__file__).parent / "results" / "depthwise_gpu.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
