"""The one network class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the base of SyncBatchNorm too
from torch.utils.checkpoint import checkpoint

from dwsep_zoo.errors import UserError
from dwsep_zoo.models.spec import Architecture, Conv, Stage
from dwsep_zoo.nn import ConvNormAct, ConvOp, is_depthwise
from dwsep_zoo.nn.fuse import fold_norms

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
        drop_path_rate: stochastic depth r, block i of n has r i / n; ``None``: the paper's.

    Input ``(N, in_chans, H, W)``, output ``(N, num_classes)``. The methods are those that timm's
    tools expect of a network, with timm's names and arguments.
    """

    build_args: dict[str, Any]
    """The arguments of ``create_model`` that build this network again."""
    class_names: list[str]
    """Names of the classifier's outputs, where :func:`dwsep_zoo.load` knows them."""

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
        self.build_args = {}
        self.class_names = []
        self.output_stride = arch.output_stride
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.feature_info = _feature_info(arch)
        self.grad_checkpointing = False
        self.drop_rate = arch.drop_rate if drop_rate is None else drop_rate
        self.drop_path_rate = arch.drop_path_rate if drop_path_rate is None else drop_path_rate

        self.stem: nn.Sequential = _stem(arch, in_chans)
        self.stages: nn.Sequential = _stages(arch, conv, self.drop_path_rate)
        chans = arch.stages[-1].channels
        self.head: nn.Module = nn.Identity()
        if arch.head:
            self.head = ConvNormAct(
                chans, arch.head.channels, arch.head.kernel_size, layers=arch.layers
            )
            chans = arch.head.channels
        self.num_features = chans

        self.pool = _pool()
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

        self.default_cfg = default_cfg(arch, num_classes, in_chans)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's newer name of ``default_cfg``."""
        return self.default_cfg

    @pretrained_cfg.setter
    def pretrained_cfg(self, cfg: dict[str, Any]) -> None:
        self.default_cfg = cfg

    # torch.jit.trace compiles properties otherwise, and fails at the dict.
    __jit_unused_properties__ = ("pretrained_cfg",)

    def forward_features(self, x: Tensor) -> Tensor:
        """``(N, in_chans, H, W)`` -> ``(N, num_features, H', W')``."""
        if self.grad_checkpointing:
            *_, (_, x) = self._rows(x)
            return self.head(x)
        return self.head(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``(N, num_features, H', W')`` -> ``(N, num_classes)``."""
        x = self.dropout(self.hidden(self.pool(x)))
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The feature maps that ``feature_info`` describes, from the finest to the coarsest.

        Args:
            x: ``(N, in_chans, H, W)``.
            indices: positions; an int: that many of the last; ``None``: all.
            norm: without effect, as no norm follows the stages.
            stop_early: stop after the last of them.
            output_fmt: ``NCHW``.
            intermediates_only: leave out the features of :meth:`forward_features`.

        Returns:
            Tensors ``(N, num_chs, H / reduction, W / reduction)``, alone or behind the features.

        Raises:
            UserError: for an index or a format that there is not.
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt must be 'NCHW'; got {output_fmt!r}")
        if stop_early and not intermediates_only:
            raise UserError("stop_early=True gives no final features: set intermediates_only=True")
        taken = {self.feature_info[i]["module"] for i in self._taps(indices)}
        intermediates: list[Tensor] = []
        features = x
        for name, features in self._rows(x):
            if name in taken:
                intermediates.append(features)
                if stop_early and len(intermediates) == len(taken):
                    break
        return intermediates if intermediates_only else (self.head(features), intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the parts that :meth:`forward_intermediates` does not need for these indices.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: without effect, as no norm follows the stages.
            prune_head: remove the head, the hidden layer and the classifier even if the last row
                stays; they go anyway if it does not, as they do not fit to another.

        Returns:
            The indices, none of them negative.

        Raises:
            UserError: for an index that there is not.
        """
        taps = self._taps(indices)
        last = self.feature_info[max(taps)]
        if prune_head or last is not self.feature_info[-1]:
            part, row = last["module"].split(".")
            if part == "stem":
                self.stem, self.stages = self.stem[: int(row) + 1], nn.Sequential()
            else:
                self.stages = self.stages[: int(row) + 1]
            self.feature_info = self.feature_info[: max(taps) + 1]
            self.head = nn.Identity()
            self.num_features = last["num_chs"]
            self.reset_classifier(0, "")
        return taps

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of parameter names, for timm's learning rate by layer; the rest is the head."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" + ("" if coarse else r"\.(\d+)")}

    def no_weight_decay(self) -> set[str]:
        """The depthwise filters, as in this zoo's recipe; timm adds norms and biases itself."""
        return {f"{name}.weight" for name, module in self.named_modules() if is_depthwise(module)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the blocks' inputs for the backward pass, and compute the rest again there."""
        self.grad_checkpointing = enable

    def fuse(self) -> ConvNet:
        """Fold every norm into the convolution before it, for inference; returns the network.

        It computes what it did in eval mode, to rounding, and can no longer be trained with batch
        statistics: copy it first if that is wanted.
        """
        fold_norms(self, self.default_cfg["input_size"])
        return self

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new, freshly initialised classifier in place; 0 leaves it out.

        Args:
            num_classes: outputs.
            global_pool: ``avg``; ``""`` leaves out the hidden layer too, for good, and the network
                then gives the feature map ``(N, num_features, H', W')``; ``None``: as it is.

        Raises:
            UserError: for another pooling, or classes without one.
        """
        if global_pool not in (None, "avg", ""):
            raise UserError(f"global_pool must be 'avg' or ''; got {global_pool!r}")
        if global_pool == "" and num_classes:
            raise UserError(f"global_pool='' needs num_classes=0; got {num_classes}")
        if global_pool == "":
            self.pool, self.hidden = nn.Sequential(), nn.Identity()
            self.head_hidden_size = self.num_features
        elif not self.pool and (global_pool == "avg" or num_classes):
            self.pool = _pool()
        weight = next(self.parameters())
        self.num_classes = num_classes
        self.classifier = _classifier(self.head_hidden_size, num_classes).to(weight)
        self.default_cfg = {**self.default_cfg, "num_classes": num_classes}

    def _rows(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The name and the output of each row of stem and stages."""
        for i, row in enumerate(self.stem):
            x = row(x)
            yield f"stem.{i}", x
        for i, stage in enumerate(self.stages):
            if self.grad_checkpointing:
                for block in stage.children():
                    x = _checkpoint(block, x)
            else:
                x = stage(x)
            yield f"stages.{i}", x

    def _taps(self, indices: int | Sequence[int] | None) -> list[int]:
        """Absolute positions in ``feature_info``."""
        every = range(len(self.feature_info))
        if indices is None:
            return list(every)
        wanted = range(-indices, 0) if isinstance(indices, int) else indices
        if not wanted or not all(-len(every) <= i < len(every) for i in wanted):
            raise UserError(f"indices={indices!r}: this network has {len(every)} feature maps")
        return [every[i] for i in wanted]


def _stem(arch: Architecture, chans: int) -> nn.Sequential:
    stem = nn.Sequential()
    for row in arch.stem:
        shape = (chans, row.channels, row.kernel_size, row.stride)
        stem.append(ConvNormAct(*shape, layers=arch.layers, padded=row.padded))
        chans = row.channels
    return stem


def _stages(arch: Architecture, conv: ConvOp, drop_path_rate: float) -> nn.Sequential:
    """The stages; the drop path rate of the blocks grows linearly with their depth.

    As in timm, which takes the convolution before a hidden layer for a block too.
    """
    stages = nn.Sequential()
    chans, depth = arch.stem[-1].channels, 0
    num_blocks = sum(stage.repeats for stage in arch.stages) + bool(arch.hidden)
    for stage in arch.stages:
        blocks = nn.Sequential()
        for i in range(stage.repeats):
            stride = stage.stride if i == 0 else 1
            rate = drop_path_rate * depth / num_blocks
            shape = (chans, stage.channels, stride)
            blocks.append(stage.block(*shape, conv=conv, layers=arch.layers, drop_path=rate))
            chans = stage.channels
            depth += 1
        stages.append(blocks)
    return stages


def default_cfg(arch: Architecture, num_classes: int = 1000, in_chans: int = 3) -> dict[str, Any]:
    """timm's description of a network: its images, its first layer and its last."""
    size = arch.resolution
    return {
        "num_classes": num_classes,
        "input_size": (in_chans, size, size),
        "pool_size": (-(-size // arch.output_stride),) * 2,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN if in_chans == 3 else (0.5,) * in_chans,
        "std": IMAGENET_STD if in_chans == 3 else (0.5,) * in_chans,
        "first_conv": "stem.0.conv",
        "classifier": "classifier",
    }


def _feature_info(arch: Architecture) -> list[dict[str, Any]]:
    """The last row of each resolution, as timm has it for its networks."""
    rows: list[tuple[str, Conv | Stage]] = [
        *((f"stem.{i}", row) for i, row in enumerate(arch.stem)),
        *((f"stages.{i}", row) for i, row in enumerate(arch.stages)),
    ]
    info, reduction = [], 1
    for i, (module, row) in enumerate(rows):
        reduction *= row.stride
        if i + 1 == len(rows) or rows[i + 1][1].stride > 1:
            info.append({"num_chs": row.channels, "reduction": reduction, "module": module})
    return info


def _checkpoint(block: nn.Module, x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # repeats no updates, and takes no such contexts
        return checkpoint(block, x, use_reentrant=False)
    return checkpoint(
        block,
        x,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _without_statistics(block)),
    )


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Computed a second time, a batch would count twice in the norms' running statistics."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _pool() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _classifier(in_features: int, num_classes: int) -> nn.Module:
    return nn.Linear(in_features, num_classes) if num_classes else nn.Identity()
