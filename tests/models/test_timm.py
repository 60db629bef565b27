"""Every network as timm's tools see it."""

import copy
from collections import Counter

import pytest
import timm
import torch
from helpers import calibrate, models
from timm.models._features import FeatureGetterNet
from timm.models._manipulate import group_parameters
from torch import nn

from dwsep_zoo import UserError, create_model, list_models
from dwsep_zoo.models.convnet import ConvNet
from dwsep_zoo.nn import is_depthwise


def small(name: str, **options: object) -> ConvNet:
    options = {"width_mult": 0.125, "num_classes": 7, "output_stride": 8, **options}
    return create_model(name, **options)


# Where timm's own network ends its stages with the same rows; its MobileNetV3 and V4 count the
# head's convolution to the last stage and are compared without it.
TWINS = {
    "mobilenet_v1": ("mobilenetv1_100", 5),
    "mobilenet_v2": ("mobilenetv2_100", 5),
    "mobilenet_v3_large": ("mobilenetv3_large_100", 4),
    "mobilenet_v3_small": ("mobilenetv3_small_100", 4),
    "mobilenet_v4_conv_small": ("mobilenetv4_conv_small", 4),
    "mobilenet_v4_conv_medium": ("mobilenetv4_conv_medium", 4),
    "mobilenet_v4_conv_large": ("mobilenetv4_conv_large", 4),
    "efficientnet_b0": ("efficientnet_b0", 5),
    "efficientnet_b7": ("efficientnet_b7", 5),
    "efficientnet_lite4": ("efficientnet_lite4", 5),
}


@pytest.mark.parametrize("name", TWINS)
def test_feature_info_is_that_of_timms_network(name: str) -> None:
    twin, num = TWINS[name]
    with torch.device("meta"):
        ours = create_model(name).feature_info
        theirs = timm.create_model(twin).feature_info
    keys = ("num_chs", "reduction")
    assert len(ours) == len(theirs) == 5
    assert [[info[k] for k in keys] for info in ours[:num]] == [
        [info[k] for k in keys] for info in theirs[:num]
    ]


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("output_stride", [32, 8])
def test_feature_info_describes_the_maps_that_come_out(name: str, output_stride: int) -> None:
    model = small(name, output_stride=output_stride).eval()
    info = model.feature_info
    assert info[-1]["reduction"] == output_stride
    assert info[-1]["module"] == f"stages.{len(model.stages) - 1}"
    reductions = [tap["reduction"] for tap in info]
    assert reductions == sorted(set(reductions))
    outputs = {}
    for tap in info:
        model.get_submodule(tap["module"]).register_forward_hook(
            lambda module, args, y, name=tap["module"]: outputs.update({name: y})
        )
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features, maps = model.forward_intermediates(x)
        for tap, y in zip(info, maps, strict=True):
            assert y.shape[1] == tap["num_chs"]
            size = -(-64 // tap["reduction"])
            # Xception's stem is not padded and loses a few pixels.
            assert y.shape[2] == size or (name == "xception" and size - 4 <= y.shape[2] < size)
            assert y is outputs[tap["module"]]
        torch.testing.assert_close(model.head(maps[-1]), features, rtol=0, atol=0)
        torch.testing.assert_close(model.forward_features(x), features, rtol=0, atol=0)


@pytest.mark.parametrize("name", models())
def test_a_pruned_network_gives_the_same_maps(name: str) -> None:
    """Hence none of them is changed in place by what lies behind it."""
    model = calibrate(small(name), torch.randn(4, 3, 32, 32))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        _, want = model.forward_intermediates(x)
        for i in range(len(want)):
            pruned = FeatureGetterNet(copy.deepcopy(model), out_indices=(i,))
            assert pruned.feature_info.channels() == [want[i].shape[1]]
            (got,) = pruned(x)
            torch.testing.assert_close(got, want[i], rtol=0, atol=0)
            names = {n.removeprefix("model.") for n, _ in pruned.named_parameters()}
            last = model.feature_info[i]["module"]
            assert max(names, key=_position).startswith(f"{last}.")
            torch.testing.assert_close(pruned.model(x), want[i], rtol=0, atol=0)


def _position(parameter: str) -> tuple[int, int]:
    part, row = parameter.split(".")[:2]
    return ["stem", "stages", "head", "hidden", "classifier"].index(part), (
        int(row) if row.isdigit() else 0
    )


def test_indices_count_from_either_end_and_stop_early() -> None:
    model = small("mobilenet_v2").eval()
    x = torch.randn(1, 3, 32, 32)
    _, every = model.forward_intermediates(x)
    behind = []
    model.stages[-1].register_forward_hook(lambda *_: behind.append(1))
    for indices, want in ((2, every[-2:]), ([-1], every[-1:]), ((0, 2), [every[0], every[2]])):
        got = model.forward_intermediates(x, indices, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert len(behind) == 3
    model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    assert len(behind) == 3
    assert model.prune_intermediate_layers([-3, 0]) == [1, 0]
    with pytest.raises(UserError, match=r"indices=\[2\]: this network has 2 feature maps"):
        model.forward_intermediates(x, [2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m.forward_intermediates(x, 9), "indices=9: this network has 4 feature maps"),
        (lambda m, x: m.forward_intermediates(x, []), "this network has 4 feature maps"),
        (lambda m, x: m.prune_intermediate_layers([4]), "this network has 4 feature maps"),
        (
            lambda m, x: m.forward_intermediates(x, output_fmt="NLC"),
            "output_fmt must be 'NCHW'; got 'NLC'",
        ),
        (lambda m, x: m.forward_intermediates(x, stop_early=True), "set intermediates_only=True"),
        (lambda m, x: m.reset_classifier(3, "max"), "global_pool must be 'avg' or ''; got 'max'"),
        (lambda m, x: m.reset_classifier(3, ""), "global_pool='' needs num_classes=0; got 3"),
    ],
)
def test_messages(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(small("mobilenet_v2"), torch.randn(1, 3, 32, 32))


def _one_pass(model: ConvNet, x: torch.Tensor) -> tuple[int, int]:
    """The bytes that autograd keeps and the number of times that a block is computed."""
    kept: dict[int, int] = {}
    calls = []
    block = model.stages[-1][-1]
    handle = block.register_forward_pre_hook(lambda *_: calls.append(1))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(x).square().sum()
    loss.backward()
    handle.remove()
    return sum(kept.values()), len(calls)


@pytest.mark.parametrize("name", models())
def test_checkpointing_gives_the_same_gradients_and_statistics_from_less(name: str) -> None:
    """With dropout and stochastic depth as the paper has them."""
    model = small(name).train()
    plain = copy.deepcopy(model)
    model.set_grad_checkpointing()
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(1)
    kept, calls = _one_pass(plain, x)
    torch.manual_seed(1)
    kept_less, calls_more = _one_pass(model, x)
    assert (calls, calls_more) == (1, 2)
    assert kept_less < 0.8 * kept
    for (key, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, msg=key)
    for (key, a), b in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=key)
    model.set_grad_checkpointing(False)
    assert _one_pass(model, x)[1] == 1


@pytest.mark.parametrize("name", models())
def test_parameters_are_grouped_from_the_stem_to_the_head(name: str) -> None:
    with torch.device("meta"):
        model = small(name)
    layer = group_parameters(model, model.group_matcher(), reverse=True)
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    names = [key for key, _ in model.named_parameters()]
    assert [layer[key] for key in names] == sorted(layer.values())
    assert max(coarse.values()) == len(model.stages) + 1
    blocks = [block for stage in model.stages for block in stage]
    assert max(layer.values()) == len(blocks) + 1
    sizes = Counter(layer.values())
    assert [sizes[i + 1] for i in range(len(blocks))] == [
        sum(1 for _ in block.parameters()) for block in blocks
    ]


@pytest.mark.parametrize("name", models())
def test_only_depthwise_filters_are_exempt_from_decay_by_name(name: str) -> None:
    with torch.device("meta"):
        model = small(name)
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert all(is_depthwise(m) for m in depthwise)
    exempt = {id(model.get_parameter(key)) for key in model.no_weight_decay()}
    assert exempt == {id(m.weight) for m in depthwise}


def test_without_depthwise_filters_none_is_exempt() -> None:
    assert small("mobilenet_v1", conv="standard").no_weight_decay() == set()


@pytest.mark.parametrize("name", models())
def test_the_classifier_and_the_pooling_can_be_reset(name: str) -> None:
    model = small(name).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        model.reset_classifier(5, "avg")
        assert model(x).shape == (2, 5)
        features = model.forward_features(x)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        assert model.pretrained_cfg["num_classes"] == model.num_classes == 0
        model.reset_classifier(4)
        torch.testing.assert_close(model(x), model.classifier(features.mean((2, 3))))


def test_both_names_of_the_configuration_are_one() -> None:
    model = small("xception", in_chans=1)
    assert model.in_chans == 1
    model.pretrained_cfg = {**model.default_cfg, "crop_pct": 0.9}
    assert model.default_cfg["crop_pct"] == 0.9
    model.default_cfg = {}
    assert copy.deepcopy(model).pretrained_cfg == {}


@pytest.mark.parametrize("name", list_models())
def test_the_configuration_names_the_first_and_the_last_layer(name: str) -> None:
    with torch.device("meta"):
        model = small(name, in_chans=2)
    cfg = model.pretrained_cfg
    assert model.get_submodule(cfg["first_conv"]).in_channels == cfg["input_size"][0] == 2
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert len(cfg["mean"]) == len(cfg["std"]) == 2


# MobileNetV1 has no shortcuts; of V4-Conv-S, which the paper trains without, timm counts plain
# convolutions as blocks.
@pytest.mark.parametrize("name", sorted(TWINS.keys() - {"mobilenet_v1", "mobilenet_v4_conv_small"}))
def test_stochastic_depth_has_timms_rates(name):
    with torch.device("meta"):
        ours = create_model(name, drop_path_rate=0.2)
        theirs = timm.create_model(TWINS[name][0], drop_path_rate=0.2)
    rates = [m.drop_prob for m in ours.modules() if type(m).__name__ == "DropPath"]
    paths = [m.drop_path for m in theirs.modules() if getattr(m, "has_skip", False)]
    assert rates == pytest.approx([p.drop_prob for p in paths if not isinstance(p, nn.Identity)])


@pytest.mark.parametrize("name", ["mobilenet_v4_conv_small", "efficientnet_lite4"])
def test_initial_weights_have_timms_deviations(name):
    """Of the convolutions, and of the hidden layer, which is one in timm."""

    def deviations(model):
        found = {}
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 50_000:
                shape = tuple(module.weight.flatten().shape)
                found.setdefault(shape, []).append(float(module.weight.detach().std()))
        return {shape: sorted(own) for shape, own in found.items()}

    ours = deviations(create_model(name, num_classes=0))
    theirs = deviations(timm.create_model(TWINS[name][0], num_classes=0))
    assert ours.keys() == theirs.keys()
    for shape, own in ours.items():
        assert own == pytest.approx(theirs[shape], rel=0.02)
