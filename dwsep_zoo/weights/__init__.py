"""Published and own weights: where they come from, how their names map, what goes with them."""

from dwsep_zoo.weights.catalog import available
from dwsep_zoo.weights.convert import export_state, from_layout
from dwsep_zoo.weights.export import export_weights
from dwsep_zoo.weights.loading import load, load_into, output_stride_of, preprocessing
from dwsep_zoo.weights.sources import Source, resolve

__all__ = [
    "Source",
    "available",
    "export_state",
    "export_weights",
    "from_layout",
    "load",
    "load_into",
    "output_stride_of",
    "preprocessing",
    "resolve",
]
