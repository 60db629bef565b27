"""What ``dwsep demo`` shows: what a network says about one picture, how long it took, its cost."""

from __future__ import annotations

import base64
import io
import statistics
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from PIL import Image, ImageOps

from dwsep_zoo.analysis.count import Count, count
from dwsep_zoo.artefacts.artefact import Artefact
from dwsep_zoo.artefacts.overlay import heat
from dwsep_zoo.artefacts.preprocess import Picture
from dwsep_zoo.data.decode import as_rgb
from dwsep_zoo.data.digits import OWN_SIDE
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.artefact import Description
from dwsep_zoo.terminal import by
from dwsep_zoo.zoo import create_model

TIMED = 5  # calls
TOP = 5  # classes
FAINT = 32  # ink below this, of 255, is the edge of a stroke
MARGIN = 0.2
"""Empty border of a drawing, as a part of it; MNIST has 4 pixels on each side of 20."""


@dataclass(frozen=True)
class Seen:
    """What a network says about a picture.

    Attributes:
        probabilities: of the most probable classes by name, the most probable first.
        milliseconds: of the network alone, the median of a few calls.
        overlay: where the first class was seen; ``None`` for an exported file.
    """

    probabilities: dict[str, float]
    milliseconds: float
    overlay: Image.Image | None

    def plain(self) -> dict[str, Any]:
        """As the page gets it."""
        overlay = None
        if self.overlay is not None:
            file = io.BytesIO()
            self.overlay.save(file, "png")
            overlay = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        return {
            "classes": [*self.probabilities.items()],
            "milliseconds": self.milliseconds,
            "overlay": overlay,
        }


def see(artefact: Artefact, picture: Picture, top_k: int = TOP) -> Seen:
    """Show a picture to a network.

    Raises:
        UserError: for what is not a picture.
    """
    x = artefact.preprocess([picture])
    times = []
    for _ in range(TIMED):
        start = perf_counter()
        logits = artefact.logits(x)
        times.append(1e3 * (perf_counter() - start))
    top = logits[0].softmax(0).topk(min(top_k, artefact.about.num_classes))
    found: dict[str, float] = {}
    for place, probability in zip(top.indices.tolist(), top.values.tolist(), strict=True):
        found.setdefault(artefact.labels[place], probability)  # a few classes share their words
    overlay = heat(artefact, picture) if artefact.model is not None else None
    return Seen(found, statistics.median(times), overlay)


def cost(artefact: Artefact) -> Count:
    """Parameters and multiply-adds of the network that an artefact holds, in whatever format."""
    arguments: dict[str, Any] = {**artefact.about.network, "drop_path_rate": 0.0}
    with torch.device("meta"):
        model = create_model(**arguments)
    return count(model, artefact.input_size)


def from_drawing(drawing: Image.Image, about: Description) -> Image.Image:
    """A drawing with a dark pen on white, as a network was trained to see such pictures.

    A network for colours gets it as it is. For grey pictures, the strokes are centred in a square
    with a border, and are light on dark if the training pictures are mostly dark. The digits of
    scikit-learn fill their 8 x 8 pixels and were enlarged for training; so is the drawing.

    Raises:
        UserError: for an empty drawing.
    """
    drawing = as_rgb(drawing)
    ink = ImageOps.invert(drawing.convert("L"))
    box = ink.point(lambda value: 255 * (value > FAINT)).getbbox()
    if box is None:
        raise UserError("nothing is drawn yet")
    if about.in_chans != 1:
        return drawing
    data = about.record.get("data")
    digits = isinstance(data, dict) and data.get("name") == "digits"
    strokes = ink.crop(box)
    side = round(max(strokes.size) * (1 if digits else 1 + 2 * MARGIN))
    square = Image.new("L", (side, side))
    square.paste(strokes, ((side - strokes.width) // 2, (side - strokes.height) // 2))
    if digits:
        own, whole = (OWN_SIDE, OWN_SIDE), (about.image_size, about.image_size)
        return square.resize(own, Image.Resampling.BOX).resize(whole, Image.Resampling.BILINEAR)
    return square if about.mean[0] < 0.5 else ImageOps.invert(square)


def facts(artefact: Artefact) -> dict[str, Any]:
    """The names of a network, and what it is and costs."""
    about, counted = artefact.about, cost(artefact)
    conv = about.network.get("conv", "depthwise_separable")
    values = {
        "MACs": f"{counted.macs / 1e6:,.2f} M",
        "parameters": f"{counted.params / 1e6:,.2f} M",
        "size": f"{artefact.size_bytes / 1e6:,.2f} MB, {about.precision}",
        "runtime": f"{artefact.runtime}, threads: {artefact.threads}",
        "images": by(artefact.input_size),
        "from": artefact.what,
    }
    name = conv["name"] if isinstance(conv, dict) else conv
    return {"model": about.network["name"], "conv": name, "facts": values}
