"""Names of the layers in other projects: one declared map for each layout.

A layout is a function from a network of ours and the names of a foreign state dict to pairs of
modules, ours and theirs. Rows (stem, blocks, head) correspond in order; inside a row, the tables
below say which layer is which. Nothing here looks at shapes or values: :mod:`.convert` does, and
checks that no name on either side is left over.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from torch import nn

from dwsep_zoo.models import ConvNet
from dwsep_zoo.nn import (
    FusedInvertedResidual,
    InvertedResidual,
    SeparableConv,
    UniversalInvertedBottleneck,
    XceptionBlock,
)

Pairs = Iterator[tuple[str, str]]
Layout = Callable[[ConvNet, list[str]], Pairs]

TIMM_CONV = {"conv": "conv", "norm": "bn1"}
TIMM_SEPARABLE = {
    "conv.depthwise": "conv_dw",
    "conv.mid.0": "bn1",
    "conv.gate.reduce": "se.conv_reduce",
    "conv.gate.expand": "se.conv_expand",
    "conv.pointwise": "conv_pw",
    "norm": "bn2",
}
TIMM_INVERTED = {
    "expand.conv": "conv_pw",
    "expand.norm": "bn1",
    "conv.depthwise": "conv_dw",
    "conv.mid.0": "bn2",
    "conv.gate.reduce": "se.conv_reduce",
    "conv.gate.expand": "se.conv_expand",
    "conv.pointwise": "conv_pwl",
    "norm": "bn3",
}
TIMM_UNIVERSAL = {
    "expand.conv.depthwise": "dw_start.conv",
    "expand.conv.mid": "dw_start.bn",
    "expand.conv.pointwise": "pw_exp.conv",
    "expand.conv": "pw_exp.conv",
    "expand.norm": "pw_exp.bn",
    "conv.depthwise": "dw_mid.conv",
    "conv.mid.0": "dw_mid.bn",
    "conv.pointwise": "pw_proj.conv",
    "conv": "pw_proj.conv",
    "norm": "pw_proj.bn",
}
TIMM_FUSED = {
    "expand.conv": "conv_exp",
    "expand.norm": "bn1",
    "conv": "conv_pwl",
    "norm": "bn2",
}
LITE_BLOCK = {
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "conv.depthwise": "_depthwise_conv",
    "conv.mid.0": "_bn1",
    "conv.gate.reduce": "_se_reduce",
    "conv.gate.expand": "_se_expand",
    "conv.pointwise": "_project_conv",
    "norm": "_bn2",
}


def timm(model: ConvNet, names: list[str]) -> Pairs:
    """timm's MobileNets and EfficientNets: ``conv_stem``, ``blocks.i.j``, ``conv_head``."""
    yield from {"stem.0.conv": "conv_stem", "stem.0.norm": "bn1"}.items()
    theirs = _rows(names, r"blocks\.\d+\.\d+")
    ours = _blocks(model)
    stem = [f"stem.{i}" for i in range(1, len(model.stem))]
    head = ["head"] if len(theirs) > len(stem) + len(ours) else []
    rows = [*stem, *ours, *head]
    for row, their_row in zip(rows, theirs, strict=True):
        table = TIMM_CONV
        if row in ours:
            block = ours[row]
            if isinstance(block, UniversalInvertedBottleneck):
                table = TIMM_UNIVERSAL
            elif isinstance(block, FusedInvertedResidual):
                table = TIMM_FUSED
            elif isinstance(block, InvertedResidual) and not isinstance(block.expand, nn.Identity):
                table = TIMM_INVERTED
            else:
                table = TIMM_SEPARABLE
        yield from _table(model, row, their_row, table)
    if not head and not isinstance(model.head, nn.Identity):
        yield from {"head.conv": "conv_head", "head.norm": "bn2"}.items()
    if isinstance(model.hidden, nn.Sequential):
        yield "hidden.0", "conv_head"
        if isinstance(model.hidden[1], nn.BatchNorm1d):
            yield "hidden.1", "norm_head"
    yield "classifier", "classifier"


def torchvision(model: ConvNet, names: list[str]) -> Pairs:
    """torchvision's MobileNets and EfficientNets: rows of ``features``, numbered layers inside."""
    ours = _blocks(model)
    nested = any(name.startswith("features.1.0.block.") for name in names)
    theirs = _rows(names, r"features\.\d+\.\d+(?=\.block)" if nested else r"features\.\d+")
    if nested:  # EfficientNet: stages of blocks between stem and head
        last = max(int(name.split(".")[1]) for name in names if name.startswith("features."))
        theirs = ["features.0", *theirs, f"features.{last}"]
    for row, their_row in zip(["stem.0", *ours, "head"], theirs, strict=True):
        if row in ours:
            inside = "conv" if any(n.startswith(f"{their_row}.conv.") for n in names) else "block"
            yield from _torchvision_block(row, f"{their_row}.{inside}", ours[row])
        else:
            yield f"{row}.conv", f"{their_row}.0"
            yield f"{row}.norm", f"{their_row}.1"
    if isinstance(model.hidden, nn.Identity):
        yield "classifier", "classifier.1"
    else:
        yield "hidden.0", "classifier.0"
        yield "classifier", "classifier.3"


def _torchvision_block(row: str, theirs: str, block: nn.Module) -> Pairs:
    """Expansion, depthwise and projection are each a numbered pair of convolution and norm."""
    number = 0
    pairs = [("conv.depthwise", "conv.mid.0")]
    if not isinstance(block.expand, nn.Identity):
        pairs.insert(0, ("expand.conv", "expand.norm"))
    for conv, norm in pairs:
        yield f"{row}.{conv}", f"{theirs}.{number}.0"
        yield f"{row}.{norm}", f"{theirs}.{number}.1"
        number += 1
    if hasattr(block.conv, "gate"):
        yield f"{row}.conv.gate.reduce", f"{theirs}.{number}.fc1"
        yield f"{row}.conv.gate.expand", f"{theirs}.{number}.fc2"
        number += 1
    flat = theirs.endswith(".conv")  # MobileNetV2's projection is not nested
    yield f"{row}.conv.pointwise", f"{theirs}.{number}" if flat else f"{theirs}.{number}.0"
    yield f"{row}.norm", f"{theirs}.{number + 1}" if flat else f"{theirs}.{number}.1"


def xception(model: ConvNet, names: list[str]) -> Pairs:
    """timm's ``legacy_xception``: Cadene's port of Keras' network."""
    for i in (0, 1):
        yield f"stem.{i}.conv", f"conv{i + 1}"
        yield f"stem.{i}.norm", f"bn{i + 1}"
    number, last = 0, 3
    for row, block in _blocks(model).items():
        if isinstance(block, XceptionBlock):
            number += 1
            layer = 0
            for i, unit in enumerate(block.body):
                layer += hasattr(unit, "act")  # activations are counted there too
                yield f"{row}.body.{i}.conv.depthwise", f"block{number}.rep.{layer}.conv1"
                yield f"{row}.body.{i}.conv.pointwise", f"block{number}.rep.{layer}.pointwise"
                yield f"{row}.body.{i}.norm", f"block{number}.rep.{layer + 1}"
                layer += 2
            if isinstance(block.shortcut, nn.Sequential):
                yield f"{row}.shortcut.0", f"block{number}.skip"
                yield f"{row}.shortcut.1", f"block{number}.skipbn"
        else:
            yield f"{row}.conv.depthwise", f"conv{last}.conv1"
            yield f"{row}.conv.pointwise", f"conv{last}.pointwise"
            yield f"{row}.norm", f"bn{last}"
            last += 1
    yield "classifier", "fc"


def aligned_xception(model: ConvNet, names: list[str]) -> Pairs:
    """timm's ``xception41``, ``65`` and ``71``: blocks of three, the last one without shortcut."""
    for i in (0, 1):
        yield f"stem.{i}.conv", f"stem.{i}.conv"
        yield f"stem.{i}.norm", f"stem.{i}.bn"
    blocks = _blocks(model)
    full = [row for row, block in blocks.items() if isinstance(block, XceptionBlock)]
    exit_flow = [row for row, block in blocks.items() if isinstance(block, SeparableConv)]
    for i, row in enumerate(full):
        for j in range(3):
            unit, theirs = f"{row}.body.{j}", f"blocks.{i}.stack.conv{j + 1}"
            yield f"{unit}.conv.depthwise", f"{theirs}.conv_dw"
            yield f"{unit}.conv.mid", f"{theirs}.bn_dw"
            yield f"{unit}.conv.pointwise", f"{theirs}.conv_pw"
            yield f"{unit}.norm", f"{theirs}.bn_pw"
        if isinstance(blocks[row].shortcut, nn.Sequential):
            yield f"{row}.shortcut.0", f"blocks.{i}.shortcut.conv"
            yield f"{row}.shortcut.1", f"blocks.{i}.shortcut.bn"
    for j, row in enumerate(exit_flow):
        theirs = f"blocks.{len(full)}.stack.conv{j + 1}"
        yield f"{row}.conv.depthwise", f"{theirs}.conv_dw"
        yield f"{row}.conv.mid.0", f"{theirs}.bn_dw"
        yield f"{row}.conv.pointwise", f"{theirs}.conv_pw"
        yield f"{row}.norm", f"{theirs}.bn_pw"
    yield "classifier", "head.fc"


def efficientnet_pytorch(model: ConvNet, names: list[str]) -> Pairs:
    """The layout of the packages after EfficientNet-PyTorch: ``_blocks.n._depthwise_conv``."""
    yield from {"stem.0.conv": "_conv_stem", "stem.0.norm": "_bn0"}.items()
    for i, row in enumerate(_blocks(model)):
        yield from _table(model, row, f"_blocks.{i}", LITE_BLOCK)
    yield from {"head.conv": "_conv_head", "head.norm": "_bn1", "classifier": "_fc"}.items()


def keras(model: ConvNet, names: list[str]) -> Pairs:
    """Keras' files: layers by class and number, in the order in which they stand in the network."""
    numbers: Counter[str] = Counter()
    separable = any(name.startswith("separable_conv2d.") for name in names)
    dense = any(name.startswith("dense.") for name in names)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            kind = "batch_normalization"
        elif isinstance(module, nn.Linear):
            last = name == "classifier"
            kind = "dense" if dense and last else "conv2d"
        elif not isinstance(module, nn.Conv2d):
            continue
        elif separable and name.endswith((".depthwise", ".pointwise")):
            kind = "separable_conv2d"
        else:
            kind = "depthwise_conv2d" if name.endswith(".depthwise") else "conv2d"
        number = numbers[kind]
        if kind == "separable_conv2d":
            part = name.rsplit(".", 1)[-1]
            yield name, f"{kind}.{number}.{part}"
            numbers[kind] += part == "pointwise"
        else:
            yield name, f"{kind}.{number}"
            numbers[kind] += 1


def zoo(model: ConvNet, names: list[str]) -> Pairs:
    """Our own names."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d):
            yield name, name


SIGNS: tuple[tuple[str, Layout], ...] = (
    # a name that only this layout has
    ("stages.0.0.", zoo),
    ("block1.rep.", xception),
    ("blocks.0.stack.", aligned_xception),
    ("_conv_stem.", efficientnet_pytorch),
    ("conv_stem.", timm),
    ("features.0.0.", torchvision),
    ("batch_normalization.0.", keras),
)


def recognise(names: Iterable[str]) -> Layout | None:
    """The layout that a state dict's names belong to."""
    names = list(names)
    for sign, layout in SIGNS:
        if any(name.startswith(sign) for name in names):
            return layout
    return None


def _blocks(model: ConvNet) -> dict[str, nn.Module]:
    return {
        f"stages.{i}.{name}": block
        for i, stage in enumerate(model.stages)
        for name, block in stage.named_children()
    }


def _rows(names: list[str], pattern: str) -> list[str]:
    """The distinct beginnings of names that match, in the order of their numbers."""
    found = {match[0] for name in names if (match := re.match(pattern, name))}
    return sorted(found, key=lambda row: [int(n) for n in re.findall(r"\d+", row)])


def _table(model: ConvNet, row: str, theirs: str, table: dict[str, str]) -> Pairs:
    """The lines of a table for the layers that this row has."""
    modules = dict(model.get_submodule(row).named_modules())
    for our_name, their_name in table.items():
        module = modules.get(our_name)
        if module is not None and any(True for _ in module.parameters(recurse=False)):
            yield f"{row}.{our_name}", f"{theirs}.{their_name}"
