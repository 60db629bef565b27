"""Receptive fields by exact arithmetic: the pixels of the image that an output pixel sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from dwsep_zoo.nn import SqueezeExcite
from dwsep_zoo.nn.conv import MixedDepthwise
from dwsep_zoo.nn.layers import Conv2dSame, MaxPool2dSame

Window = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d


@dataclass(frozen=True)
class Span:
    """Output pixel ``i`` of ``pixels`` sees the image from ``low + i step`` to ``high + i step``.

    Both ends are seen; where they lie outside of the image, they are padding.
    """

    low: int
    high: int
    step: int
    pixels: int

    @property
    def size(self) -> int:
        return self.high - self.low + 1


@dataclass(frozen=True)
class Field:
    """The receptive field of a feature map, in pixels of the image."""

    rows: Span
    columns: Span

    @property
    def size(self) -> tuple[int, int]:
        return self.rows.size, self.columns.size

    @property
    def step(self) -> tuple[int, int]:
        """The cumulative stride: between the fields of neighbouring pixels."""
        return self.rows.step, self.columns.step


def receptive_fields(model: nn.Module, input_size: Sequence[int]) -> dict[str, Field]:
    """The receptive field after every convolution and pooling, by the layer's name.

    A window of k pixels adds (k - 1) steps to the field, and its stride multiplies the step; where
    branches meet, the fields are united. Layers after the average pooling see the whole image and
    are left out, and so are squeeze-and-excite gates, although they pass what they see to every
    pixel; the literature ignores this too.

    Args:
        model: a network of this zoo.
        input_size: ``(C, H, W)``; "same" padding depends on it.
    """
    _, height, width = input_size
    image = Field(*(Span(low=0, high=0, step=1, pixels=pixels) for pixels in (height, width)))
    walk = _Walk(fx.GraphModule(model, _Tracer().trace(model)))
    walk.run(image)
    return walk.fields


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, nn.Conv2d | nn.MaxPool2d | SqueezeExcite | MixedDepthwise)
        return whole or super().is_leaf_module(m, module_qualified_name)


class _Walk(fx.Interpreter):
    """The network's graph, run on fields; ``None`` is the whole image."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.fields: dict[str, Field] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        module, (field,) = self.fetch_attr(target), args
        if field is None or isinstance(module, nn.AdaptiveAvgPool2d):
            return None
        if isinstance(module, MixedDepthwise):
            named = [(f"{target}.{name}", conv) for name, conv in module.named_children()]
            return _join(self._see(name, conv, field) for name, conv in named)
        return self._see(target, module, field) if isinstance(module, Window) else field

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        # Pixel by pixel, or behind the pooling: nothing else is in these networks' forwards.
        return _join(arg for arg in args if isinstance(arg, Field))

    call_method = call_function

    def _see(self, name: str, window: nn.Module, field: Field) -> Field:
        assert isinstance(window, Window)
        sides = (_side(window, axis, span) for axis, span in enumerate((field.rows, field.columns)))
        self.fields[name] = Field(*sides)
        return self.fields[name]


def _side(window: Window, axis: int, span: Span) -> Span:
    kernel, stride, padding = (
        value if isinstance(value, int) else int(value[axis])
        for value in (window.kernel_size, window.stride, window.padding)
    )
    if isinstance(window, Conv2dSame | MaxPool2dSame) or getattr(window, "same", False):
        pixels = -(-span.pixels // stride)
        padding = max((pixels - 1) * stride + kernel - span.pixels, 0) // 2
    else:
        pixels = (span.pixels + 2 * padding - kernel) // stride + 1
    return Span(
        low=span.low - padding * span.step,
        high=span.high + (kernel - 1 - padding) * span.step,
        step=span.step * stride,
        pixels=pixels,
    )


def _join(fields: Iterator[Field]) -> Field | None:
    """The union of the fields of several branches."""
    branches = list(fields)
    if not branches:
        return None

    def union(spans: Sequence[Span]) -> Span:
        return Span(
            low=min(span.low for span in spans),
            high=max(span.high for span in spans),
            step=spans[0].step,
            pixels=spans[0].pixels,
        )

    return Field(
        union([field.rows for field in branches]), union([field.columns for field in branches])
    )
