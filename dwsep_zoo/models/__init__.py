"""The architectures, one family a file, and the one network class they share."""

from dwsep_zoo.models.convnet import ConvNet
from dwsep_zoo.models.registry import create_architecture, create_model, list_models

__all__ = ["ConvNet", "create_architecture", "create_model", "list_models"]
