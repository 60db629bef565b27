"""int8 after training: channels equalised, biases corrected, files of the runtimes' own tools."""

from dwsep_zoo.quantise.backends import BACKENDS
from dwsep_zoo.quantise.diagnose import LayerLoss, culprit, diagnose
from dwsep_zoo.quantise.quantise import Quantised, diagnose_artefact, quantise

__all__ = [
    "BACKENDS",
    "LayerLoss",
    "Quantised",
    "culprit",
    "diagnose",
    "diagnose_artefact",
    "quantise",
]
