"""Equal logits: every published network, filled with the same numbers, and the way back."""

import pytest
import timm
import torch
import torchvision
from helpers import calibrate

from dwsep_zoo import UserError, create_model
from dwsep_zoo.models import list_models
from dwsep_zoo.weights import catalog, export_state, from_layout
from dwsep_zoo.weights.layouts import recognise

LARGE = ("b3", "b4", "b5", "b6", "b7", "xception65", "xception71")


def cases(published):
    return [
        pytest.param(name, entry, marks=pytest.mark.slow if name.endswith(LARGE) else [])
        for name, entry in published.items()
    ]


def build(entry, **changes):
    options = {"drop_path_rate": 0.0, **entry.options, **changes}
    return create_model(entry.model, width_mult=entry.width_mult, **options).eval()


def assert_equal(theirs, entry, name):
    calibrate(theirs, torch.randn(4, 3, 64, 64))
    state = theirs.state_dict()
    with torch.device("meta"):  # its own weights would not be used
        ours = build(entry)
    ours.load_state_dict(from_layout(state, recognise(state), ours, name), assign=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want, got = theirs(x), ours(x)
    assert want.std() > 0.01  # the logits depend on the image
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)

    back = export_state(ours, recognise(state), state)
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(("name", "entry"), cases(catalog.TIMM))
def test_timm(name, entry):
    assert_equal(timm.create_model(name), entry, name)


@pytest.mark.parametrize(("name", "entry"), cases(catalog.TORCHVISION))
def test_torchvision(name, entry):
    assert_equal(torchvision.models.get_model(name), entry, name)


def test_the_torchvision_width_rule():
    theirs = torchvision.models.mobilenet_v3_small(width_mult=0.75)
    entry = catalog.Published("mobilenet_v3_small", (), 0.75, catalog.TORCHVISION_V3)
    assert_equal(theirs, entry, "mobilenet_v3_small at 0.75")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("tf_efficientnet_lite0", {"padding": "symmetric"}),
        ("tf_efficientnet_lite0", {"bn_eps": 1e-5}),
        ("mobilenetv1_100", {"act": "relu"}),
    ],
)
def test_a_wrong_option_is_seen_in_the_logits(name, wrong):
    """So that equality above means something."""
    theirs = calibrate(timm.create_model(name), torch.randn(4, 3, 96, 96))
    ours = build(catalog.TIMM[name], **wrong)
    state = theirs.state_dict()
    ours.load_state_dict(from_layout(state, recognise(state), ours, name))
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert (theirs(x) - ours(x)).abs().max() > 1e-4


def test_what_the_catalogue_names_exists():
    """timm knows every tag, torchvision every string, and each belongs to a model of the zoo."""
    for name, entry in catalog.TIMM.items():
        known = set(timm.list_pretrained(f"{name}.*"))
        assert {f"{name}.{tag}" for tag in entry.tags} <= known
        assert entry.model in list_models()
    for name, entry in catalog.TORCHVISION.items():
        known = set(torchvision.models.get_model_weights(name).__members__)
        assert set(entry.tags) == known - {"DEFAULT"}
        assert entry.model == name


def state_of(name):
    return timm.create_model(name).state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.2.1.conv_dw.weight"), "blocks.2.1.conv_dw.weight is missing"),
        (lambda s: s.update({"extra.weight": torch.ones(1)}), "extra.weight has no place in"),
        (
            lambda s: s.update({"conv_stem.weight": torch.ones(32, 3, 5, 5)}),
            "conv_stem.weight has shape 32 x 3 x 5 x 5; mobilenet_v2 .width 1. has 32 x 3 x 3 x 3",
        ),
        (
            lambda s: s.update({"bn1.weight": torch.ones(32).half()}),
            "bn1.weight is float16; mobilenet_v2 .width 1. has float32",
        ),
    ],
)
def test_the_first_misfit_is_named(change, message):
    state = state_of("mobilenetv2_100")
    change(state)
    model = create_model("mobilenet_v2")
    with pytest.raises(UserError, match=message):
        from_layout(state, recognise(state), model, "weights")


@pytest.mark.parametrize("other", ["mobilenetv2_050", "mobilenetv3_small_100", "efficientnet_b0"])
def test_another_architecture_or_width(other):
    state = state_of(other)
    with pytest.raises(UserError, match=r"^weights: .*mobilenet_v2 \(width 1\)"):
        from_layout(state, recognise(state), create_model("mobilenet_v2"), "weights")
