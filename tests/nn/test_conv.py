"""Conv types: closed-form costs, shapes, options and messages, for every one in the registry."""

import math
import re

import pytest
import torch
from torch import nn

from dwsep_zoo import UserError, count, create_conv, list_convs
from dwsep_zoo.nn import CONVS, Layers, SqueezeExcite

LAYERS = Layers(nn.ReLU)

WEIGHTS = {  # of K, M, N without norms
    "standard": lambda k, m, n: k * k * m * n,
    "depthwise_separable": lambda k, m, n: k * k * m + m * n,
    "grouped": lambda k, m, n: k * k * 8 * m + m * n,
    "blueprint": lambda k, m, n: m * n + k * k * n,
    "spatially_separable": lambda k, m, n: k * m * n + k * n * n,
    "mixed": lambda k, m, n: 9 * (m - 2 * (m // 3)) + 25 * (m // 3) + 49 * (m // 3) + m * n,
}

# MACs, where a factor runs at another resolution than the output's; h: input size, s: stride
MACS = {
    "blueprint": lambda k, m, n, h, s: m * n * h * h + k * k * n * (h // s) ** 2,
    "spatially_separable": lambda k, m, n, h, s: (
        k * m * n * h * (h // s) + k * n * n * (h // s) ** 2
    ),
}


def build(conv, in_chans, out_chans, kernel_size=3, stride=1, mid="none", gate=None):
    op = create_conv(conv)
    return op(in_chans, out_chans, kernel_size, stride, layers=LAYERS, mid=mid, gate=gate)


def test_every_conv_type_has_a_formula_here():
    assert set(WEIGHTS) == set(list_convs())


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize(("k", "m", "n", "stride"), [(3, 16, 24, 1), (5, 32, 8, 2), (3, 8, 8, 2)])
def test_weights_and_macs_are_the_closed_form(conv, k, m, n, stride):
    cost = count(build(conv, m, n, k, stride), (m, 14, 14))
    weights = WEIGHTS[conv](k, m, n)
    assert cost.params == weights
    if conv in MACS:
        assert cost.macs == MACS[conv](k, m, n, 14, stride)
    else:
        assert cost.macs == weights * (14 // stride) ** 2


@pytest.mark.parametrize(("k", "n"), [(3, 3), (3, 512), (5, 64), (7, 16)])
def test_the_separable_fraction_is_exactly_1_over_n_plus_1_over_k2(k, n):
    m = 12
    separable = count(build("depthwise_separable", m, n, k), (m, 8, 8)).macs
    standard = count(build("standard", m, n, k), (m, 8, 8)).macs
    assert separable * n * k * k == standard * (k * k + n)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_depth_multiplier_multiplies_the_cost(multiplier):
    conv = {"name": "depthwise_separable", "depth_multiplier": multiplier}
    once = count(build("depthwise_separable", 8, 24), (8, 8, 8)).macs
    assert count(build(conv, 8, 24), (8, 8, 8)).macs == multiplier * once


@pytest.mark.parametrize("conv", CONVS)
def test_the_gate_has_the_operators_input_width_everywhere(conv):
    def gate(chans):
        return SqueezeExcite(chans, 4, nn.ReLU, nn.Sigmoid)

    unit = build(conv, 16, 24, gate=gate)
    assert unit.gate.reduce.in_channels == 16
    assert unit(torch.randn(2, 16, 8, 8)).shape == (2, 24, 8, 8)


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet")
def test_per_sample_gradients(conv):
    """torch.func's transforms know PyTorch's operators alone, which are then taken."""
    unit = build(conv, 16, 24, mid="norm_act").eval()
    images = torch.randn(3, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    params = dict(unit.named_parameters())

    def loss(params, image):
        return torch.func.functional_call(unit, params, image[None]).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, images)
    for i, image in enumerate(images):
        alone = torch.autograd.grad(loss(params, image), [*params.values()])
        for name, gradient in zip(params, alone, strict=True):
            torch.testing.assert_close(each[name][i], gradient, rtol=1e-3, atol=1e-4)


def test_mid_is_the_blocks_unless_the_user_says_otherwise():
    def norms(conv, mid):
        modules = [type(m) for m in build(conv, 8, 8, mid=mid).modules()]
        return modules.count(nn.BatchNorm2d), modules.count(nn.ReLU)

    name = "depthwise_separable"
    assert norms(name, "norm_act") == (1, 1)
    assert norms(name, "none") == (0, 0)
    assert norms({"name": name, "mid": None}, "norm_act") == (1, 1)
    assert norms({"name": name, "mid": "norm"}, "norm_act") == (1, 0)
    assert norms({"name": name, "mid": "norm_act"}, "none") == (1, 1)
    assert norms("standard", "norm_act") == (0, 0)


def test_separable_equals_the_standard_convolution_of_its_outer_product():
    unit = build("depthwise_separable", 6, 10, 3, 2)
    kernel = unit.pointwise.weight * unit.depthwise.weight.transpose(0, 1)  # (10, 6, 3, 3)
    x = torch.randn(2, 6, 9, 9)
    dense = nn.functional.conv2d(x, kernel, stride=2, padding=1)
    torch.testing.assert_close(unit(x), dense, atol=1e-5, rtol=1e-5)


def test_grouped_with_one_channel_a_group_is_depthwise_separable():
    torch.manual_seed(0)
    grouped = build({"name": "grouped", "group_size": 1}, 8, 16)
    torch.manual_seed(0)
    separable = build("depthwise_separable", 8, 16)
    x = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(grouped(x), separable(x))


@pytest.mark.parametrize("rank", [0.25, 1 / 6, 1])
def test_blueprint_with_a_rank_is_bsconv_s(rank):
    m, n = 32, 24
    inner = min(m, max(4, math.ceil(rank * m)))
    cost = count(build({"name": "blueprint", "rank": rank}, m, n), (m, 8, 8))
    assert cost.params == m * inner + inner * n + 9 * n


def test_blueprint_is_a_blueprint_times_a_vector():
    """Equation 3 of the paper: filter n, channel m is depthwise kernel n times weight (n, m)."""
    unit = build("blueprint", 6, 10, 3, 2)
    kernel = unit.pointwise.weight * unit.depthwise.weight  # (10, 6, 1, 1) * (10, 1, 3, 3)
    x = torch.randn(2, 6, 9, 9)
    dense = nn.functional.conv2d(x, kernel, stride=2, padding=1)
    torch.testing.assert_close(unit(x), dense, atol=1e-5, rtol=1e-5)


def test_spatially_separable_splits_a_kernel_of_rank_one():
    """Sobel's kernel is the product of a smoothing column and a differencing row."""
    unit = build("spatially_separable", 1, 1)
    unit.vertical.weight.data = torch.tensor([1.0, 2.0, 1.0]).view(1, 1, 3, 1)
    unit.horizontal.weight.data = torch.tensor([1.0, 0.0, -1.0]).view(1, 1, 1, 3)
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).view(1, 1, 3, 3)
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(unit(x), nn.functional.conv2d(x, sobel, padding=1))


def test_mixed_with_one_size_is_depthwise_separable():
    torch.manual_seed(0)
    mixed = build({"name": "mixed", "kernel_sizes": [5]}, 8, 16)
    torch.manual_seed(0)
    separable = build("depthwise_separable", 8, 16, 5)
    x = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(mixed(x), separable(x))


def test_mixed_filters_each_share_with_its_own_size():
    unit = build("mixed", 8, 4)
    assert [tuple(conv.weight.shape) for conv in unit.depthwise] == [
        (4, 1, 3, 3),
        (2, 1, 5, 5),
        (2, 1, 7, 7),
    ]


def test_same_padding_is_tensorflows():
    """The odd pixel is at the bottom and right: ceil(size / stride) outputs, from tf.nn's text."""
    layers = Layers(nn.ReLU, padding="same")
    for groups in (1, 4):
        conv = layers.conv(4, 4, 3, 2, groups=groups)
        for size, before, after in ((8, 0, 1), (7, 1, 1)):
            x = torch.randn(1, 4, size, size)
            padded = nn.functional.pad(x, (before, after, before, after))
            want = nn.functional.conv2d(padded, conv.weight, stride=2, groups=groups)
            torch.testing.assert_close(conv(x), want)
            assert conv(x).shape[-1] == -(-size // 2)
    pooled = layers.max_pool(3, 2)(-torch.ones(1, 1, 4, 4))
    assert (pooled == -1).all()  # padded with minus infinity, not zeros


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        ("depthwise_seperable", "did you mean 'depthwise_separable'"),
        ({"name": "standard", "mid": "norm"}, "conv=standard has no options; got mid='norm'"),
        ({"name": "grouped", "grop_size": 2}, "did you mean 'group_size'"),
        ({"name": "blueprint", "rank": 2}, r"conv.rank must be in (0, 1], or 0 for none; got 2"),
        ({"name": "mixed", "kernel_sizes": [4]}, "conv.kernel_sizes must be a list of odd sizes"),
        ({"name": "grouped", "group_size": 0}, "conv.group_size must be a whole number"),
        ({"name": "depthwise_separable", "mid": "act"}, "unknown conv.mid 'act'"),
    ],
)
def test_messages(conv, message):
    with pytest.raises(UserError, match=re.escape(message)):
        create_conv(conv)


def test_a_group_size_that_does_not_divide():
    with pytest.raises(UserError, match="group_size 16 does not divide 24"):
        build({"name": "grouped", "group_size": 16}, 24, 8)
