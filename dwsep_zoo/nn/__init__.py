"""The shared separable-block module: conv types and the blocks built around them."""

from dwsep_zoo.nn.blocks import (
    ConvNormAct,
    InvertedResidual,
    SeparableConv,
    SqueezeExcite,
    XceptionBlock,
    make_divisible,
)
from dwsep_zoo.nn.conv import CONVS, ConvOp, create_conv, list_convs
from dwsep_zoo.nn.layers import DepthwiseConv2d, Layers

__all__ = [
    "CONVS",
    "ConvNormAct",
    "ConvOp",
    "DepthwiseConv2d",
    "InvertedResidual",
    "Layers",
    "SeparableConv",
    "SqueezeExcite",
    "XceptionBlock",
    "create_conv",
    "list_convs",
    "make_divisible",
]
