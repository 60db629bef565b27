"""The architectures, one family a file, and the one network class they share."""

from dwsep_zoo.models.convnet import ConvNet
from dwsep_zoo.models.registry import build_model, create_architecture, list_models

__all__ = ["ConvNet", "build_model", "create_architecture", "list_models"]
