"""Counting runs no arithmetic, and still has the shapes that arithmetic would have."""

import pytest
import torch
from torch import nn

from dwsep_zoo import count


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": (2, 1), "padding": (0, 1)},
        {"padding": "same", "dilation": 2},
        {"groups": 2, "dilation": (1, 2)},
        {"groups": 4, "bias": False, "stride": 3},
    ],
)
def test_shapes_are_those_of_the_convolution(options):
    conv = nn.Conv2d(4, 8, 3, **options)
    (layer,) = count(conv, (4, 9, 12)).layers
    assert layer.out_shape == tuple(conv(torch.zeros(1, 4, 9, 12)).shape[1:])


def test_channels_that_do_not_fit_are_an_error():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(4, 8, 1))
    with pytest.raises(RuntimeError, match="4 channels, but got 8"):
        count(model, (3, 8, 8))
