"""int8 after training: a network is prepared in PyTorch, and written by a runtime's own tools."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dwsep_zoo.artefacts.export import Exported, check_and_write, compare, graph, output
from dwsep_zoo.artefacts.formats import FORMATS
from dwsep_zoo.artefacts.preprocess import Picture
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.nn.int8 import SCHEMES, Scheme
from dwsep_zoo.quantise.backends import BACKENDS, Backend
from dwsep_zoo.quantise.bias import correct_biases
from dwsep_zoo.quantise.calibration import calibration_images
from dwsep_zoo.quantise.diagnose import LayerLoss, diagnose
from dwsep_zoo.quantise.equalise import equalise as equalise_channels
from dwsep_zoo.quantise.equalise import fold
from dwsep_zoo.quantise.rounding import learned_copy
from dwsep_zoo.schema.part import Json

if TYPE_CHECKING:
    from dwsep_zoo.artefacts.artefact import Artefact
    from dwsep_zoo.models import ConvNet

CALIBRATION = 32
Equalise = bool | Literal["ceilings"]


@dataclass(frozen=True)
class Quantised:
    """An int8 file.

    Attributes:
        file: what was written, and how it agrees with the float network.
        making: how it was made, as its description says.
        float_agreement: share of the calibration pictures for which equalisation kept the top-1
            class of the float network; ``None``: not equalised.
        others: whether it was compared on other pictures than it was calibrated with.
    """

    file: Exported
    making: Json
    float_agreement: float | None
    others: bool = True

    def line(self) -> str:
        text = self.file.line()
        if not self.others:
            text += "; these are the calibration pictures, as there are no others"
        if self.float_agreement is not None:
            text += (
                f"; in float, equalisation kept the top-1 class of {self.float_agreement:.1%} of "
                "the calibration pictures"
            )
        return text


def quantise(
    artefact: Artefact,
    to: str,
    out: str | Path | None = None,
    *,
    scheme: Scheme = "per_channel",
    equalise: Equalise | None = None,
    learned_rounding: bool = False,
    bias_correction: bool = True,
    calibration: int = CALIBRATION,
    pictures: Sequence[Picture] | None = None,
    batch_size: int | None = 1,
    data_dir: str | Path = "data",
) -> Quantised:
    """Write a network in int8, open the file, and compare outputs with the float network's.

    Args:
        artefact: one that holds a network of PyTorch: a run, a checkpoint, published weights.
        to: one of ``BACKENDS``: openvino, onnx, executorch, litert.
        out: the file; ``None``: ``export/model-int8`` in the folder of the run.
        scheme: of the weights: a scale for each output channel, or one for a whole layer.
        equalise: the channels' ranges first; ``None``: for ``per_tensor`` only, unless the network
            was trained with such scales; ``ceilings``: every channel, by an operation more behind
            each ReLU6.
        learned_rounding: choose for each weight the level above or below it that keeps the layer's
            outputs, not the nearest.
        bias_correction: subtract the mean error that rounded weights make on the calibration
            pictures.
        calibration: number of pictures, at least 2.
        pictures: to take them from; those that are left are compared on. ``None``: training images
            of the run's data, compared on its test images.
        batch_size: images of a call; ``None``: any number.
        data_dir: folder of downloaded sets and caches.

    Raises:
        UserError: for an artefact that is an exported file, missing packages, or pictures that do
            not do.
    """
    backend = _backend(to, batch_size)
    choose(scheme, SCHEMES, "scheme")
    model = network_of(artefact)
    path = output(artefact, out, FORMATS[to], "model-int8")
    if equalise is None:
        equalise = scheme == "per_tensor" and _trained_scheme(artefact) != scheme
    images, others = calibration_images(artefact, pictures, calibration, data_dir)
    making: Json = {
        "scheme": scheme,
        "equalised": equalise,
        "learned_rounding": learned_rounding,
        "bias_corrected": bias_correction,
        "calibration": len(images),
    }
    network = prepared(model, images, equalise=equalise)
    kept = _kept(model, network, images) if equalise else None
    network = _repaired(network, images, scheme, learned_rounding, bias_correction)
    about = artefact.about.replace(batch_size=batch_size, precision="int8", quantisation=making)
    batches = _batches(images, batch_size or 1)
    contents = backend.make(graph(network, about), about, batches, scheme)
    file = check_and_write(artefact, to, path, contents, others, real=True, exact=False)
    return Quantised(file, making, kept, others is not images)


def diagnose_artefact(
    artefact: Artefact,
    *,
    calibration: int = CALIBRATION,
    pictures: Sequence[Picture] | None = None,
    data_dir: str | Path = "data",
) -> tuple[list[LayerLoss], list[LayerLoss]]:
    """What rounding costs each layer of a network, as it is and equalised."""
    model = network_of(artefact)
    images, _ = calibration_images(artefact, pictures, calibration, data_dir)
    plain, equal = (prepared(model, images, equalise=value) for value in (False, True))
    return diagnose(plain, images), diagnose(equal, images)


def _trained_scheme(artefact: Artefact) -> str | None:
    """The scheme of the simulated int8 in which the network's run trained it."""
    record: dict[str, Any] = dict(artefact.about.record)
    scheme: str | None = record.get("config", {}).get("recipe", {}).get("simulated_int8")
    return scheme


def network_of(artefact: Artefact) -> ConvNet:
    if artefact.model is None:
        raise UserError(
            f"{artefact.what}: is a file of {artefact.format}; quantise the run that it was made "
            "from"
        )
    return artefact.model


def prepared(model: ConvNet, images: Tensor, *, equalise: Equalise) -> nn.Module:
    """A copy with folded norms and, if wanted, equal channels."""
    network = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
    statistics = fold(network, images.shape[1:])
    if equalise:
        equalise_channels(network, images, statistics, ceilings=equalise == "ceilings")
    return network


def _backend(to: str, batch_size: int | None) -> Backend:
    backend = BACKENDS[choose(to, BACKENDS, "format")]
    FORMATS[to].check_batch(f"to={to}", batch_size)
    if line := backend.missing():
        raise UserError(f"to={to} needs {', '.join(backend.packages)}; install: {line}")
    return backend


def _repaired(
    floats: nn.Module, images: Tensor, scheme: Scheme, learn: bool, correct: bool
) -> nn.Module:
    """The network with its weights' errors made small, and made up for."""
    network = learned_copy(floats, images, scheme) if learn else floats
    if correct:
        correct_biases(network, images, scheme, like=floats)
    return network


def _kept(model: nn.Module, network: nn.Module, images: Tensor) -> float:
    with torch.inference_mode():
        want, got = (torch.cat([m(x) for x in images.split(32)]) for m in (model, network))
    if not want.isfinite().all():
        raise UserError("the network's outputs of the calibration pictures are not finite")
    return compare(got, want)[1]


def _batches(images: Tensor, size: int) -> list[Tensor]:
    """As the graph takes them; the last batch is filled up with the first images."""
    missing = -len(images) % size
    rounds = -(-missing // len(images))
    whole = torch.cat([images, *[images] * rounds])[: len(images) + missing]
    return [part.contiguous() for part in whole.contiguous().split(size)]
