"""Operators below the modules."""

from dwsep_zoo.ops.depthwise import depthwise_conv2d, plain_kernels
from dwsep_zoo.ops.fallback import fallbacks

__all__ = ["depthwise_conv2d", "fallbacks", "plain_kernels"]
