"""Operators below the modules."""

from dwsep_zoo.ops.depthwise import depthwise_conv2d, plain_kernels

__all__ = ["depthwise_conv2d", "plain_kernels"]
