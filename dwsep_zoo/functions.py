"""The commands as functions, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dwsep_zoo.artefacts import Prediction, open_artefact
from dwsep_zoo.artefacts.preprocess import Picture
from dwsep_zoo.config import compose_settings

if TYPE_CHECKING:
    from dwsep_zoo.schema.record import RunRecord


def train(*overrides: str) -> RunRecord:
    """Train and test a network, as ``python train.py`` does.

    Args:
        overrides: ``"model=mobilenet_v1"``, ``"conv=standard"``, ``"trainer.max_epochs=2"`` ...

    Returns:
        The record, as ``result.json`` has it. The folder of the run is in
        ``record.config["paths"]["output_dir"]``.

    Raises:
        UserError: in one line, for what cannot work.
    """
    from dwsep_zoo.training import train

    return train(compose_settings(overrides))


def predict(
    artefact: str | Path, pictures: Picture | Iterable[Picture], **options: Any
) -> list[Prediction]:
    """The most probable classes of pictures.

    Args:
        artefact: see :func:`dwsep_zoo.open_artefact`.
        pictures: one or several: files, Pillow's pictures, arrays of uint8.
        options: ``top_k`` and ``batch_size`` of :meth:`dwsep_zoo.Artefact.predict`.
    """
    if isinstance(pictures, str | Path | Image.Image | np.ndarray) or callable(pictures):
        pictures = [pictures]
    return open_artefact(artefact).predict(pictures, **options)
