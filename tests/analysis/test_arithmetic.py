"""The worked examples of textbooks, and formulas that hold."""

import pytest
import torch

from dwsep_zoo import count, create_model
from dwsep_zoo.analysis.arithmetic import conv_costs, unit_formula


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
