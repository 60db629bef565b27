"""Artefacts: trained networks in any format, to predict with, to evaluate and to export."""

from dwsep_zoo.artefacts.artefact import Artefact, Prediction
from dwsep_zoo.artefacts.evaluate import Evaluation, evaluate
from dwsep_zoo.artefacts.export import Exported, export
from dwsep_zoo.artefacts.open import open_artefact

__all__ = [
    "Artefact",
    "Evaluation",
    "Exported",
    "Prediction",
    "evaluate",
    "export",
    "open_artefact",
]
