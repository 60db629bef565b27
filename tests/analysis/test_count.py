"""Counting runs no arithmetic, and still has the shapes that arithmetic would have."""

import pytest
import torch
from torch import nn

from dwsep_zoo import UserError, count, create_model, measure_latency, optimise
from dwsep_zoo.analysis.latency import compare_latency
from dwsep_zoo.analysis.memory import inference_memory, training_memory
from dwsep_zoo.nn.layers import Layers


def _latency(model, input_size=None):
    return measure_latency(model, input_size, min_run_time=0.01)


def _eager(model, input_size=None):
    return optimise(model.eval(), input_size, runtime="eager", min_run_time=0.01)


SIZED = [count, _latency, _eager, inference_memory, training_memory]


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


CONVS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 5, "padding": 2, "stride": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": (1, 3), "padding": (0, 1), "stride": (1, 2)},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "stride": 2},
]


@pytest.mark.parametrize("options", CONVS)
@pytest.mark.parametrize("size", [(6, 6), (7, 8), (3, 9)])
def test_taps_on_padding_are_no_work(options, size):
    conv = nn.Conv2d(2, 2, groups=2, bias=False, **options)
    (layer,) = count(conv, (2, *size)).layers
    nn.init.ones_(conv.weight)  # each output then counts the pixels under its filter
    assert layer.macs_inside == conv(torch.ones(1, 2, *size)).sum()
    assert layer.macs_inside <= layer.macs


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_taps_on_tensorflows_padding_are_no_work(size, kernel_size):
    conv = Layers(nn.ReLU, padding="same").conv(2, 2, kernel_size, 2, groups=2)
    (layer,) = count(conv, (2, size, size)).layers
    nn.init.ones_(conv.weight)
    assert layer.macs_inside == conv(torch.ones(1, 2, size, size)).sum()


@pytest.mark.parametrize("measure", SIZED, ids=lambda measure: measure.__name__)
def test_a_network_is_measured_with_its_own_images(measure):
    model = create_model("mobilenet_v1", width_mult=0.25, in_chans=1, output_stride=8)
    model.default_cfg = {**model.default_cfg, "input_size": (1, 32, 32)}
    seen = []
    model.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1:]))
    measure(model)
    assert set(seen) == {(1, 32, 32)}


@pytest.mark.parametrize("measure", SIZED, ids=lambda measure: measure.__name__)
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((3, 32, 32), "takes images of 1 channels"),
        ((32, 32), r"\(C, H, W\), three whole numbers; got \[32, 32\]"),
        ((1, 32, 0), "three whole numbers"),
        ((1, 32, 32.5), "three whole numbers"),
        ("onnxruntime", "got 'onnxruntime'"),
        (32, "got 32"),
    ],
)
def test_images_of_another_kind_are_refused(measure, size, message):
    model = create_model("mobilenet_v1", width_mult=0.25, in_chans=1)
    with pytest.raises(UserError, match=message):
        measure(model, size)


@pytest.mark.parametrize("measure", SIZED, ids=lambda measure: measure.__name__)
def test_a_network_without_a_size_of_its_own_needs_one(measure):
    with pytest.raises(UserError, match=r"Sequential does not say its input_size"):
        measure(nn.Sequential(nn.Conv2d(3, 8, 1)))


def test_networks_of_different_sizes_are_not_compared():
    models = [create_model(name, width_mult=0.25) for name in ("mobilenet_v1", "xception")]
    with pytest.raises(UserError, match="sizes differ"):
        compare_latency(*models)


def test_channels_that_do_not_fit_are_an_error():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(4, 8, 1))
    with pytest.raises(RuntimeError, match="4 channels, but got 8"):
        count(model, (3, 8, 8))
