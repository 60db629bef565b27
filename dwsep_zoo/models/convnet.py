"""The one network class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dwsep_zoo.errors import UserError
from dwsep_zoo.models.spec import Architecture
from dwsep_zoo.nn import ConvNormAct, ConvOp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ConvNet(nn.Module):
    """Stem -> stages -> head -> average pool -> hidden layer -> dropout -> classifier.

    Args:
        arch: the rows.
        conv: the operator of every factorised convolution.
        num_classes: outputs; 0 leaves the classifier out, the network then gives pooled features.
        in_chans: channels of the input images.
        drop_rate: dropout before the classifier; ``None``: the paper's.
        drop_path_rate: stochastic depth of the last block, linear from 0; ``None``: the paper's.

    Input ``(N, in_chans, H, W)``, output ``(N, num_classes)``.
    """

    def __init__(
        self,
        arch: Architecture,
        *,
        conv: ConvOp,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
    ):
        super().__init__()
        self.output_stride = arch.output_stride
        self.num_classes = num_classes
        self.drop_rate = arch.drop_rate if drop_rate is None else drop_rate
        self.drop_path_rate = arch.drop_path_rate if drop_path_rate is None else drop_path_rate

        chans = in_chans
        self.stem = nn.Sequential()
        for row in arch.stem:
            self.stem.append(
                ConvNormAct(
                    chans,
                    row.channels,
                    row.kernel_size,
                    row.stride,
                    layers=arch.layers,
                    padded=row.padded,
                )
            )
            chans = row.channels

        self.stages = nn.Sequential()
        depth, num_blocks = 0, sum(stage.repeats for stage in arch.stages)
        for stage in arch.stages:
            blocks = nn.Sequential()
            for i in range(stage.repeats):
                blocks.append(
                    stage.block(
                        chans,
                        stage.channels,
                        stage.stride if i == 0 else 1,
                        conv=conv,
                        layers=arch.layers,
                        drop_path=self.drop_path_rate * depth / num_blocks,
                    )
                )
                chans = stage.channels
                depth += 1
            self.stages.append(blocks)

        self.head: nn.Module = nn.Identity()
        if arch.head:
            self.head = ConvNormAct(
                chans, arch.head.channels, arch.head.kernel_size, layers=arch.layers
            )
            chans = arch.head.channels
        self.num_features = chans

        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.hidden: nn.Module = nn.Identity()
        if arch.hidden:
            self.hidden = nn.Sequential(nn.Linear(chans, arch.hidden, bias=not arch.hidden_norm))
            if arch.hidden_norm:
                self.hidden.append(arch.layers.norm_1d(arch.hidden))
            self.hidden.append(arch.layers.act())
            chans = arch.hidden
        self.head_hidden_size = chans
        self.dropout = nn.Dropout(self.drop_rate)
        self.classifier = _classifier(chans, num_classes)

        size = arch.resolution
        self.default_cfg: dict[str, Any] = {
            "num_classes": num_classes,
            "input_size": (in_chans, size, size),
            "pool_size": (-(-size // self.output_stride),) * 2,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_MEAN if in_chans == 3 else (0.5,) * in_chans,
            "std": IMAGENET_STD if in_chans == 3 else (0.5,) * in_chans,
            "first_conv": "stem.0.conv",
            "classifier": "classifier",
        }

    def forward_features(self, x: Tensor) -> Tensor:
        """``(N, in_chans, H, W)`` -> ``(N, num_features, H', W')``."""
        return self.head(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``(N, num_features, H', W')`` -> ``(N, num_classes)``."""
        x = self.dropout(self.hidden(self.pool(x)))
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new, freshly initialised classifier in place; 0 leaves it out."""
        weight = next(self.parameters())
        self.num_classes = num_classes
        self.classifier = _classifier(self.head_hidden_size, num_classes).to(weight)
        self.default_cfg = {**self.default_cfg, "num_classes": num_classes}


def _classifier(in_features: int, num_classes: int) -> nn.Module:
    return nn.Linear(in_features, num_classes) if num_classes else nn.Identity()


def build(
    arch: Architecture,
    *,
    conv: ConvOp,
    num_classes: int,
    in_chans: int,
    drop_rate: float | None,
    drop_path_rate: float | None,
) -> ConvNet:
    """Build on the meta device, then fill the memory once: no weight is initialised twice.

    On the meta device (``with torch.device("meta")``) the network stays there.
    """
    device = torch.get_default_device()
    with torch.device("meta"):
        model = ConvNet(
            arch,
            conv=conv,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
    if drop_path_rate and not any(type(m).__name__ == "DropPath" for m in model.modules()):
        raise UserError(
            f"model.drop_path_rate={drop_path_rate} has no effect: this network has no shortcuts"
        )
    if device.type != "meta":
        model.to_empty(device=device)
        arch.init(model)
    return model
