"""Receptive fields by exact arithmetic: the pixels of the image that an output pixel sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from dwsep_zoo.nn import SqueezeExcite
from dwsep_zoo.nn.conv import MixedDepthwise
from dwsep_zoo.nn.layers import Conv2dSame, MaxPool2dSame

Window = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d


@dataclass(frozen=True)
class Field:
    """The receptive field of a feature map, in rows and columns of the image.

    Output pixel ``i`` of ``pixels`` sees the image from ``low + i step`` to ``high + i step``. Both
    ends are seen; where they lie outside of the image, they are padding. The step is the cumulative
    stride.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    step: NDArray[np.int64]
    pixels: NDArray[np.int64]

    @property
    def size(self) -> NDArray[np.int64]:
        return self.high - self.low + 1


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
    zero = np.zeros(2, dtype=np.int64)
    walk = _Walk(fx.GraphModule(model, _Tracer().trace(model)))
    walk.run(Field(low=zero, high=zero, step=zero + 1, pixels=zero + input_size[1:]))
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
            return _united(self._see(name, conv, field) for name, conv in named)
        return self._see(target, module, field) if isinstance(module, Window) else field

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        # Pixel by pixel, or behind the pooling: nothing else is in these networks' forwards.
        return _united(arg for arg in args if isinstance(arg, Field))

    call_method = call_function

    def _see(self, name: str, window: nn.Module, field: Field) -> Field:
        assert isinstance(window, Window)
        kernel, stride = np.asarray(window.kernel_size), np.asarray(window.stride)
        if isinstance(window, Conv2dSame | MaxPool2dSame) or getattr(window, "same", False):
            pixels = -(-field.pixels // stride)
            padding = np.maximum((pixels - 1) * stride + kernel - field.pixels, 0) // 2
        else:
            padding = np.asarray(window.padding, dtype=np.int64)
            pixels = (field.pixels + 2 * padding - kernel) // stride + 1
        self.fields[name] = Field(
            low=field.low - padding * field.step,
            high=field.high + (kernel - 1 - padding) * field.step,
            step=field.step * stride,
            pixels=pixels,
        )
        return self.fields[name]


def _united(fields: Iterable[Field]) -> Field | None:
    """The field of several branches together."""
    branches = list(fields)
    if not branches:
        return None
    return Field(
        low=np.min([field.low for field in branches], axis=0),
        high=np.max([field.high for field in branches], axis=0),
        step=branches[0].step,
        pixels=branches[0].pixels,
    )
