"""Receptive fields against gradients."""

import pytest
import torch
from torch import nn

from dwsep_zoo import create_model, list_convs
from dwsep_zoo.analysis.receptive_field import receptive_fields
from dwsep_zoo.nn import SqueezeExcite
from dwsep_zoo.nn.layers import MaxPool2dSame, pad_same


class SumPool2d(nn.AvgPool2d):
    """What a max-pooling looks at: its outputs depend on all of their window."""

    def __init__(self, pool: nn.MaxPool2d):
        super().__init__(pool.kernel_size, pool.stride, pool.padding)
        self.is_same = isinstance(pool, MaxPool2dSame)

    def forward(self, x):
        return super().forward(pad_same(x, self.kernel_size, self.stride) if self.is_same else x)


def linearised(model):
    """The same windows, with weights of one and nothing but sums: no path cancels another."""
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            kind = type(child).__module__
            if isinstance(child, SqueezeExcite | nn.BatchNorm2d) or kind.endswith("activation"):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, SumPool2d(child))
    return model.eval()


CASES = [
    *(("mobilenet_v1", conv, "symmetric") for conv in list_convs()),
    ("mobilenet_v2", "mixed", "same"),
    ("mobilenet_v3_small", "depthwise_separable", "same"),
    ("mobilenet_v4_conv_small", "depthwise_separable", "symmetric"),
    ("xception", "depthwise_separable", "symmetric"),
    ("xception", "spatially_separable", "same"),
    ("xception41", "depthwise_separable", "same"),
    ("efficientnet_b0", "standard", "symmetric"),
]


@pytest.mark.parametrize(("name", "conv", "padding"), CASES)
def test_receptive_fields_against_gradients(name, conv, padding):
    """The pixels whose gradient is not zero are the field, for an inner pixel of every layer."""
    # Sizes at which no convolution leaves out a pixel at the border: an odd one for the unpadded.
    size = (3, 97, 121) if name == "xception" else (3, 98, 120)
    with torch.device("meta"):
        model = create_model(name, conv=conv, padding=padding, width_mult=0.05, drop_path_rate=0.0)
    fields = receptive_fields(model, size)
    model = linearised(model.to_empty(device="cpu").double())
    outputs = {}
    for layer in fields:
        model.get_submodule(layer).register_forward_hook(
            lambda module, inputs, out, layer=layer: outputs.update({layer: out})
        )
    image = torch.ones(1, *size, dtype=torch.double, requires_grad=True)
    model(image)
    checked = 0
    for layer, out in outputs.items():
        field = fields[layer]
        assert out.shape[2:] == tuple(field.pixels)
        row, column = (n // 2 for n in out.shape[2:])
        (gradient,) = torch.autograd.grad(out[0, :, row, column].sum(), image, retain_graph=True)
        seen = gradient[0].sum(0).nonzero()
        for axis, index in enumerate((row, column)):
            shift = index * field.step[axis]
            low, high = field.low[axis] + shift, field.high[axis] + shift
            last = size[axis + 1] - 1
            ends = seen[:, axis].min().item(), seen[:, axis].max().item()
            assert ends == (max(low, 0), min(high, last)), layer
            checked += low > 0 and high < last
    assert checked >= 8  # fields that lie within the image
