"""Simulated int8: a network whose weights and inputs of layers are rounded, and can be trained.

Rounding passes gradients through as if it were not there, except where it clips (Jacob et al. 2018,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv:1712.05877, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the base of all batch norms

from dwsep_zoo.nn.fuse import norm_pairs

LEVELS = 255  # steps of an activation's uint8
SMALL = 1e-12  # of a norm's scale, below which a channel is dead

Scheme = Literal["per_channel", "per_tensor"]
"""Whether each output channel of a layer has a scale of its own, or all of them share one."""
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
LARGEST = 127  # -128 is not used, so that zero is in the middle
Layer = nn.Conv2d | nn.Linear


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Convolutions and linear layers by name, in the order of the network's modules."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def step_of(weight: Tensor, scheme: Scheme) -> Tensor:
    """The difference of two levels of int8, symmetric around zero; (M, 1, ...) or ()."""
    if scheme == "per_channel":
        largest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
    else:
        largest = weight.abs().amax()
    return (largest / LARGEST).clamp_min(torch.finfo(weight.dtype).tiny)


def rounded(weight: Tensor, scheme: Scheme) -> Tensor:
    """Weights as int8 has them: multiples of a step."""
    step = step_of(weight, scheme)
    return (weight / step).round() * step


class Simulated:
    """The forward pass of a network in int8, computed in float32.

    Weights are rounded as they are once the norm behind them is folded; norms have their running
    statistics. The parameters stay those of the network, in float.

    Args:
        model: the network, which is not changed.
        scheme: of the weights: a scale for each output channel, or one for a whole layer.
        input_size: ``(C, H, W)`` of an image.

    Attributes:
        ranges: (layers, 2), smallest and largest input of each layer; see :meth:`calibrate`.
    """

    def __init__(self, model: nn.Module, scheme: Scheme, input_size: Sequence[int]):
        self.model = model
        self.scheme = scheme
        self.layers = layers_of(model)
        with _evaluating(model):
            self.norms = dict(_norms_of(model, norm_pairs(model, input_size)))
        self.ranges = torch.zeros(len(self.layers), 2)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, num_classes), float32."""
        weights = {f"{name}.weight": self._rounded(name) for name in self.layers}
        with torch.autocast(x.device.type, enabled=False), self._inputs(self._round_input):
            logits: Tensor = torch.func.functional_call(self.model, weights, (x.float(),))
        return logits

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> Tensor:
        """The ranges of the inputs of the float network over images: (layers, 2)."""
        ranges = torch.zeros_like(self.ranges)  # zero is always exact

        def look(number: int, x: Tensor) -> None:
            low, high = x.float().aminmax()
            ranges[number, 0] = torch.minimum(ranges[number, 0], low.cpu())
            ranges[number, 1] = torch.maximum(ranges[number, 1], high.cpu())

        with _evaluating(self.model), self._inputs(look):
            for images in batches:
                self.model(images)
        return ranges

    def _rounded(self, name: str) -> Tensor:
        weight = self.layers[name].weight
        scale = self._scale(name)
        folded = weight if scale is None else weight * scale
        # Straight through: the value is the rounded one, the gradient that of the weights.
        straight = folded + (rounded(folded.detach(), self.scheme) - folded).detach()
        return straight if scale is None else straight / scale

    def _scale(self, name: str) -> Tensor | None:
        """What folding multiplies a layer's output channels by; it is not trained."""
        if name not in self.norms or self.scheme == "per_channel":  # which no scale changes
            return None
        norm, channels = self.norms[name]
        assert norm.running_var is not None
        scale = (norm.weight.detach() / (norm.running_var + norm.eps).sqrt())[channels]
        scale = torch.where(scale.abs() < SMALL, torch.full_like(scale, SMALL), scale)
        return scale.view(-1, *[1] * (self.layers[name].weight.ndim - 1))

    def _round_input(self, number: int, x: Tensor) -> Tensor:
        low, high = self.ranges[number].tolist()
        step = max(high - low, torch.finfo(torch.float32).tiny) / LEVELS
        return torch.fake_quantize_per_tensor_affine(x, step, round(-low / step), 0, LEVELS)

    @contextmanager
    def _inputs(self, look: Any) -> Iterator[None]:
        """Have ``look(number, input)`` called for each layer; it may give another input."""

        def hook(number: int) -> Any:
            def pre(_: nn.Module, inputs: tuple[Tensor]) -> Any:
                return look(number, inputs[0])

            return pre

        handles = [
            layer.register_forward_pre_hook(hook(number))
            for number, layer in enumerate(self.layers.values())
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _norms_of(
    model: nn.Module, pairs: dict[str, nn.Module]
) -> Iterator[tuple[str, tuple[_BatchNorm, slice]]]:
    """The norm behind each layer that has one, and the channels of it that are the layer's."""
    names = {layer: name for name, layer in layers_of(model).items()}
    for name, maker in pairs.items():
        norm = model.get_submodule(name)
        assert isinstance(norm, _BatchNorm)
        begin = 0
        for layer in [maker] if maker in names else list(maker.children()):  # MixedDepthwise
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            end = begin + len(layer.weight)
            yield names[layer], (norm, slice(begin, end))
            begin = end
