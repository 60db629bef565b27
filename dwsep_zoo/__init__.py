"""A laboratory for depthwise separable convolution."""

from dwsep_zoo.analysis.count import Count, count
from dwsep_zoo.analysis.latency import Latency, measure_latency
from dwsep_zoo.errors import UserError
from dwsep_zoo.models import create_model, list_models
from dwsep_zoo.nn import create_conv, list_convs

__version__ = "0.1.0"

__all__ = [
    "Count",
    "Latency",
    "UserError",
    "count",
    "create_conv",
    "create_model",
    "list_convs",
    "list_models",
    "measure_latency",
]
