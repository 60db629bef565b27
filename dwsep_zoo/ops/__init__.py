"""Operators that the modules call."""

from dwsep_zoo.ops.depthwise import depthwise_conv2d
from dwsep_zoo.ops.fallback import fallbacks, plain, plain_kernels
from dwsep_zoo.ops.norm import (
    act_depthwise,
    batch_norm_act,
    batch_norm_act_depthwise,
    batch_norm_act_depthwise_batch_norm_act,
    expand_norm_act_depthwise,
)
from dwsep_zoo.ops.pointwise import pointwise_conv2d
from dwsep_zoo.ops.pool import pool_beside

__all__ = [
    "act_depthwise",
    "batch_norm_act",
    "batch_norm_act_depthwise",
    "batch_norm_act_depthwise_batch_norm_act",
    "depthwise_conv2d",
    "expand_norm_act_depthwise",
    "fallbacks",
    "plain",
    "plain_kernels",
    "pointwise_conv2d",
    "pool_beside",
]
