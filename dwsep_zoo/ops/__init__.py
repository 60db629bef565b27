"""Operators that the modules call."""

from dwsep_zoo.ops.depthwise import depthwise_conv2d
from dwsep_zoo.ops.fallback import fallbacks, plain, plain_kernels
from dwsep_zoo.ops.fusion import Depthwise, Fusion, Norm
from dwsep_zoo.ops.norm import fused
from dwsep_zoo.ops.pointwise import pointwise_conv2d
from dwsep_zoo.ops.pool import pool_beside

__all__ = [
    "Depthwise",
    "Fusion",
    "Norm",
    "depthwise_conv2d",
    "fallbacks",
    "fused",
    "plain",
    "plain_kernels",
    "pointwise_conv2d",
    "pool_beside",
]
