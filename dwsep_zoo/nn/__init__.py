"""Conv types, and the blocks that all architectures are built from."""

from dwsep_zoo.nn.blocks import (
    ConvNormAct,
    FusedInvertedResidual,
    InvertedResidual,
    SeparableConv,
    SqueezeExcite,
    UniversalInvertedBottleneck,
    XceptionBlock,
    make_divisible,
)
from dwsep_zoo.nn.conv import CONVS, ConvOp, create_conv, list_convs
from dwsep_zoo.nn.layers import Layers, is_depthwise

__all__ = [
    "CONVS",
    "ConvNormAct",
    "ConvOp",
    "FusedInvertedResidual",
    "InvertedResidual",
    "Layers",
    "SeparableConv",
    "SqueezeExcite",
    "UniversalInvertedBottleneck",
    "XceptionBlock",
    "create_conv",
    "is_depthwise",
    "list_convs",
    "make_divisible",
]
