"""Every model with every conv type, and every published count."""

import copy
import functools
import json
import math
from pathlib import Path

import pytest
import torch
from helpers import calibrate, model_conv_pairs, models, slow_unless
from torch.utils.flop_counter import FlopCounterMode

from dwsep_zoo import UserError, count, create_model
from dwsep_zoo.models import create_architecture
from dwsep_zoo.models.registry import MODELS
from dwsep_zoo.models.spec import with_output_stride
from dwsep_zoo.nn import CONVS, is_depthwise, make_divisible

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())
PAIRS = model_conv_pairs()
COSTLY_PAIRS = model_conv_pairs(costly=True)


def small(name, conv="depthwise_separable", **options):
    options = {"width_mult": 0.25, "num_classes": 7, "output_stride": 8, **options}
    return create_model(name, conv=conv, **options)


def published():
    """Of each network, the first and the last of its widths and sizes are quick ones."""
    of_networks = {}
    for row in PUBLISHED["rows"]:
        of_networks.setdefault(str([row[k] for k in ("model", "conv", "options")]), []).append(row)
    for rows in of_networks.values():
        for row in rows:
            name = [str(row[k]) for k in ("model", "conv", "width_mult", "options", "resolution")]
            marks = slow_unless(row in (rows[0], rows[-1]))
            yield pytest.param(row, marks=marks, id="-".join(name))


@pytest.mark.parametrize("row", [*published()])
def test_params_and_macs_are_the_published_ones(row):
    with torch.device("meta"):
        model = create_model(
            row["model"], conv=row["conv"], width_mult=row["width_mult"], **row["options"]
        )
    cost = count(model, (3, row["resolution"], row["resolution"]))
    assert cost.params == row["params"]
    assert row["macs"] in (None, cost.macs)


def test_every_model_has_a_published_row_and_what_is_left_out_has_a_reason():
    assert {row["model"] for row in PUBLISHED["rows"]} == set(MODELS)
    assert len(PUBLISHED["rows"]) + len(PUBLISHED["left_out"]) == 105
    assert all(row["why"] for row in PUBLISHED["left_out"])


@pytest.mark.parametrize(("name", "conv"), PAIRS)
def test_macs_agree_with_torchs_dispatcher(name, conv):
    with torch.device("meta"):
        model = small(name, conv).eval()
        image = torch.empty(1, 3, 64, 64)
    with FlopCounterMode(display=False) as flops:
        model(image)
    assert 2 * count(model, (3, 64, 64)).macs == flops.get_total_flops()


@pytest.mark.parametrize(("name", "conv"), PAIRS)
def test_every_parameter_gets_a_gradient(name, conv):
    model = small(name, conv, drop_path_rate=0.0).train()
    logits = model(torch.randn(3, 3, 33, 33))  # an odd size
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize(("name", "conv"), PAIRS)
def test_eval_is_deterministic_and_survives_copies(name, conv):
    model = calibrate(small(name, conv), torch.randn(8, 3, 32, 32))
    x = torch.randn(1, 3, 32, 32)
    twin = small(name, conv).eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        want = model(x)
        for other in (model, twin, copy.deepcopy(model)):
            torch.testing.assert_close(other(x), want, rtol=0, atol=0)
        last = model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "conv"), PAIRS)
def test_symbolic_traces_give_the_same(name, conv):
    """As tools that rewrite networks make them, torchvision's feature extractor among them."""
    model = small(name, conv).eval()
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(image), model(image))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.trace_method. is deprecated:FutureWarning")
@pytest.mark.parametrize(("name", "conv"), COSTLY_PAIRS)
def test_traced_and_exported_networks_give_the_same(name, conv):
    model = calibrate(small(name, conv), torch.randn(8, 3, 32, 32))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(torch.jit.trace(model, x)(x), want, rtol=1e-4, atol=1e-4)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "conv"), COSTLY_PAIRS)
def test_compiles_as_one_graph(name, conv):
    model = calibrate(small(name, conv, drop_path_rate=0.0), torch.randn(8, 3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    want, got = model(x), compiled(x)
    torch.testing.assert_close(got, want)
    weight = model.stem[0].conv.weight
    (direct,) = torch.autograd.grad(want.square().sum(), weight)
    (through,) = torch.autograd.grad(got.square().sum(), weight)
    torch.testing.assert_close(through, direct)


@pytest.mark.parametrize(("name", "conv"), PAIRS)
def test_bfloat16(name, conv):
    model = calibrate(small(name, conv), torch.randn(8, 3, 32, 32))
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        want, got = model(x), model.bfloat16()(x.bfloat16())
    assert got.dtype is torch.bfloat16
    # 8 bits of mantissa through up to a hundred layers
    assert torch.corrcoef(torch.stack([want.flatten(), got.float().flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize(("name", "conv"), PAIRS)
def test_the_swap_leaves_everything_else_alone(name, conv):
    """Names and shapes outside the swapped units are those of the separable network."""

    def outside(conv):
        units = []
        make = CONVS[conv]

        def noted(*args, **options):
            units.append(make(*args, **options))
            return units[-1]

        functools.update_wrapper(noted, make)
        with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
            patch.setitem(CONVS, conv, noted)
            model = create_model(name, conv=conv)
        tensors = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        names = [n for n, m in model.named_modules() if any(m is unit for unit in units)]
        return {
            key: shape
            for key, shape in tensors.items()
            if not any(key.startswith(f"{n}.") for n in names) or ".gate." in key
        }, len(units)

    assert outside(conv) == outside("depthwise_separable")


@pytest.mark.parametrize("name", models())
def test_timms_interface(name):
    model = small(name).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[:2] == (2, model.num_features)
        torch.testing.assert_close(model.forward_head(features), model(x))
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.head_hidden_size)
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)
        assert model.get_classifier().out_features == 3
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), pooled)


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("output_stride", [32, 16, 8, 4])
def test_output_stride_turns_the_earliest_strides_into_one(name, output_stride):
    paper = create_architecture(name)
    small = with_output_stride(paper, output_stride)
    assert small.output_stride == output_stride
    before = [row.stride for row in (*paper.stem, *paper.stages)]
    after = [row.stride for row in (*small.stem, *small.stages)]
    strided = [i for i, stride in enumerate(before) if stride > 1]
    turned = [i for i in strided if after[i] == 1]
    assert turned == strided[: len(turned)]
    model = create_model(name, width_mult=0.25, output_stride=output_stride).eval()
    expected = -(-96 // output_stride)
    size = model.forward_features(torch.randn(1, 3, 96, 96)).shape[-1]
    # Xception's stem is not padded and loses a few pixels.
    assert size == expected if name != "xception" else expected - 2 <= size <= expected


@pytest.mark.parametrize("name", models())
def test_seeded_weights_and_no_nan(name):
    torch.manual_seed(1)
    first = small(name)
    torch.manual_seed(1)
    second = small(name)
    for (key, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.isfinite(a).all(), key
        assert torch.equal(a, b), key


def test_initial_deviations_are_the_reference_codes():
    model = create_model("mobilenet_v1")
    depthwise = [m.weight for m in model.modules() if is_depthwise(m)]
    std = torch.cat([w.flatten() for w in depthwise]).std()
    # a normal of deviation 0.09, cut at two deviations, has 0.88 of it left
    assert abs(std / 0.09 - 0.880) < 0.01

    model = create_model("efficientnet_b0")
    head = model.head.conv.weight
    assert abs(head.std() / (2 / 1280) ** 0.5 - 1) < 0.01
    depthwise = next(m.weight for m in model.modules() if is_depthwise(m))
    assert abs(depthwise.std() / (2 / 9) ** 0.5 - 1) < 0.2

    weight = create_model("xception").classifier.weight
    bound = (6 / (2048 + 1000)) ** 0.5
    assert bound * 0.99 < weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("value", "expected"), [(32 * 0.35, 16), (24 * 0.35, 8), (12, 16), (8, 8), (3, 8), (100, 104)]
)
def test_make_divisible(value, expected):
    assert make_divisible(value) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mobilenet_v9"}, "unknown model 'mobilenet_v9'; did you mean"),
        ({"width_mult": "wide"}, "model.width_mult must be a finite number; got 'wide'"),
        ({"drop_rate": "x"}, "model.drop_rate must be a finite number; got 'x'"),
        ({"bn_eps": "x"}, "model.bn_eps must be a finite number; got 'x'"),
        (
            {"name": "efficientnet_b0", "depth_mult": "x"},
            "model.depth_mult must be a finite number",
        ),
        ({"width_mult": 0}, "model.width_mult must be greater than 0; got 0"),
        ({"width_mult": 1e5}, "model.width_mult must be at most 32; got 100000.0"),
        ({"width_mult": math.nan}, "model.width_mult must be a finite number; got nan"),
        ({"name": "xception", "shortcuts": 1}, "model.shortcuts must be true or false; got 1"),
        ({"name": "mobilenet_v3_small", "hidden": 0}, "model.hidden must be a whole number from 1"),
        ({"output_stride": 7}, "model.output_stride must be one of"),
        ({"num_classes": -1}, "num_classes must be at least 0; got -1"),
        ({"in_chans": 0}, "in_chans must be at least 1; got 0"),
        ({"drop_rate": 1.0}, r"model.drop_rate must be in \[0, 1\); got 1.0"),
        ({"drop_path_rate": 0.2}, "has no shortcuts"),
    ],
)
def test_messages(options, message):
    with pytest.raises(UserError, match=message):
        create_model(**{"name": "mobilenet_v1", **options})


def test_dropout_and_stochastic_depth_are_the_papers():
    model = create_model("efficientnet_b0", width_mult=0.25)
    assert model.dropout.p == 0.2
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert 0.15 < rates[-1] < 0.2
    assert create_model("xception", width_mult=0.25).dropout.p == 0.5
