"""Equal logits with Keras itself, from all three kinds of its files."""

import os

import numpy as np
import pytest
import torch

from dwsep_zoo import UserError, create_model

NAMES = {
    "MobileNet": "mobilenet_v1",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3Large": "mobilenet_v3_large",
    "MobileNetV3Small": "mobilenet_v3_small",
    "Xception": "xception",
    "EfficientNetB0": "efficientnet_b0",
}

slow = pytest.mark.slow


@pytest.fixture
def keras():
    os.environ["KERAS_BACKEND"] = "torch"
    return pytest.importorskip("keras")


@slow
@pytest.mark.filterwarnings("ignore")  # Keras' own
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
@pytest.mark.parametrize(("name", "model"), NAMES.items())
def test_logits_are_keras(keras, tmp_path, name, model, suffix):
    size = 75 if name == "Xception" else 96
    options = {"include_preprocessing": False} if "V3" in name else {}
    theirs = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classifier_activation=None, **options
    )
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # one batch calibrates it
    with torch.no_grad():
        theirs(torch.randn(8, size, size, 3), training=True)
    path = tmp_path / f"w{suffix}"
    (theirs.save_weights if suffix == ".weights.h5" else theirs.save)(path)

    ours = create_model(model, pretrained=path, drop_path_rate=0.0).eval()
    x = torch.randn(2, size, size, 3)
    images = x.permute(0, 3, 1, 2) / (255 if name.startswith("Efficient") else 1)
    with torch.no_grad():
        want, got = theirs(x, training=False), ours(images)
    assert want.std() > 0.01
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def old_file(path, layers):
    """As keras.applications' downloads are: named groups, in the order of an attribute."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name, _ in layers]
        for name, arrays in layers:
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{leaf}:0".encode() for leaf in arrays]
            for leaf, array in arrays.items():
                group[f"{name}/{leaf}:0"] = array
    return path


def norm(chans):
    keys = ("gamma", "beta", "moving_mean", "moving_variance")
    return {key: np.full(chans, i + 1.0, np.float32) for i, key in enumerate(keys)}


def test_an_old_file_is_read_in_its_own_order(tmp_path):
    from dwsep_zoo.weights.keras import read_keras

    kernel = np.arange(3 * 3 * 2 * 4, dtype=np.float32).reshape(3, 3, 2, 4)
    filters = np.arange(3 * 3 * 4 * 2, dtype=np.float32).reshape(3, 3, 4, 2)
    layers = [
        ("input_1", {}),
        ("zz_first", {"kernel": kernel}),
        ("aa_second", {"depthwise_kernel": filters}),
        ("bn", norm(8)),
        ("predictions", {"kernel": np.ones((8, 5), np.float32), "bias": np.zeros(5, np.float32)}),
    ]
    state = read_keras(old_file(tmp_path / "w.h5", layers))
    assert list(state) == [
        "conv2d.0.weight",
        "depthwise_conv2d.0.weight",
        "batch_normalization.0.weight",
        "batch_normalization.0.bias",
        "batch_normalization.0.running_mean",
        "batch_normalization.0.running_var",
        "dense.0.weight",
        "dense.0.bias",
    ]
    assert state["conv2d.0.weight"][3, 1, 2, 0] == kernel[2, 0, 1, 3]
    # output channel c D + d is filter d of channel c
    assert state["depthwise_conv2d.0.weight"][2 * 2 + 1, 0, 0, 2] == filters[0, 2, 2, 1]
    assert state["batch_normalization.0.running_var"].unique().item() == 4


def test_bad_files(tmp_path):
    damaged = tmp_path / "w.keras"
    damaged.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match="damaged or cut off"):
        create_model("mobilenet_v1", pretrained=damaged)
    with pytest.raises(UserError, match=r"none.h5: no such file"):
        create_model("mobilenet_v1", pretrained=tmp_path / "none.h5")
    with pytest.raises(UserError, match=r"unknown model of keras.applications 'xception41'"):
        create_model("xception41", pretrained=damaged)
