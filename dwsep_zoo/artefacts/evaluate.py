"""Accuracy of an artefact on a data set, in its own runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dwsep_zoo.analysis.device import device_name, torch_threads
from dwsep_zoo.analysis.latency import time_runs
from dwsep_zoo.analysis.runtimes import OWN_FORMAT, RUNTIMES, random_input
from dwsep_zoo.artefacts.data import batches, data_for, own_settings, ready
from dwsep_zoo.data import ImageData
from dwsep_zoo.data.module import SKIPPED, skipped_text
from dwsep_zoo.data.progress import progress
from dwsep_zoo.data.source import Source
from dwsep_zoo.data.splits import Labelled, together
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.files import write_together
from dwsep_zoo.report.classes import per_class
from dwsep_zoo.report.corruptions import accuracies
from dwsep_zoo.report.predictions import FILE_NAME as PREDICTIONS
from dwsep_zoo.report.predictions import MOST_CLASSES, TOP, Predictions
from dwsep_zoo.schema.data_settings import DataSettings
from dwsep_zoo.schema.record import (
    FILE_NAME,
    SCHEMA,
    LatencyRecord,
    RunRecord,
    now,
    parse_record,
)
from dwsep_zoo.weights.classes import outputs_of

if TYPE_CHECKING:
    from dwsep_zoo.artefacts.artefact import Artefact

BINS = 15  # of confidences, as in Guo et al. 2017
ALL = "all"
SPLITS = ("test", "val", "train", ALL)
CORRUPTED = ("cifar10_c",)
"""Data sets whose images are named ``corruption/severity/number``."""


@dataclass(frozen=True)
class Together:
    """A source whose test images are all of its images."""

    source: Source

    def prepare(self) -> None:
        self.source.prepare()

    def load(self) -> Labelled:
        return together(self.source.load())


@dataclass(frozen=True)
class Evaluation:
    """What an artefact does on a data set.

    Attributes:
        predictions: for each image; their classes are the outputs of the network.
        record: as ``result.json`` has it.
        skipped: why each picture that was left out cannot be read.
    """

    predictions: Predictions
    record: RunRecord
    skipped: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write ``result.json`` and ``predictions.npz``, which ``dwsep compare`` reads.

        ``skipped.txt`` lists the pictures that were left out, if there are any.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.record.plain(), indent=2) + "\n"
        contents: dict[Path, str | bytes] = {
            folder / PREDICTIONS: self.predictions.npz(),
            folder / FILE_NAME: text,
        }
        if self.skipped:
            contents[folder / SKIPPED] = skipped_text(self.skipped)
        else:
            (folder / SKIPPED).unlink(missing_ok=True)  # of an evaluation before
        write_together(contents)


def evaluate(
    artefact: Artefact,
    data: DataSettings | ImageData | None = None,
    *,
    split: str = "test",
    data_dir: str | Path = "data",
    latency_s: float = 1.0,
) -> Evaluation:
    """Test an artefact on a data set that the project knows.

    Images are prepared as the artefact says, and classes are matched by their names.

    Args:
        artefact: from :func:`dwsep_zoo.open_artefact`.
        data: a data set or its settings; ``None``: those that the network was trained with.
        split: test, val or train, without augmentation; or all images of a set that the network
            was not trained on.
        data_dir: folder of downloaded sets and caches.
        latency_s: seconds of timing one image; 0: none.

    Raises:
        UserError: for data with other classes or images than the artefact takes.
    """
    choose(split, SPLITS, "split")
    if data is None:
        data = own_settings(artefact, "give some").data
    if isinstance(data, DataSettings):
        data = data_for(artefact, data, data_dir)
        if split == ALL:
            data.source, split = Together(data.source), "test"
    ready(artefact, data)
    outputs = _check_fit(artefact, data, split)
    labels, logits = [], []
    total = len(data.splits[split])
    with progress(f"evaluating {artefact.what} on {total} images", total) as advance:
        for images, classes in batches(data, split):
            logits.append(artefact.logits(images))
            labels.append(torch.tensor(outputs)[classes])
            advance(len(classes))
    found = torch.cat(logits)
    predictions = _predictions(artefact, data, split, torch.cat(labels).numpy(), found)
    times = [measure(artefact, latency_s)] if latency_s else []
    values = {
        **artefact.about.record,
        "schema": SCHEMA,
        **_names(artefact, data),
        "status": "finished",
        "finished": now(),
        "metrics": {**metrics(predictions.label, found.numpy()), **_corruptions(data, predictions)},
        "per_class": per_class(predictions, artefact.about.num_classes).plain(),
        "latency": [one.plain() for one in times],
        "size_bytes": artefact.size_bytes,
        "artefact": _origin(artefact),
        "memory": {},
        "roofline": None,
    }
    return Evaluation(predictions, parse_record(values), data.skipped)


def _corruptions(data: ImageData, predictions: Predictions) -> dict[str, float]:
    """Accuracies by kind and severity, of damaged images alone."""
    if data.name not in CORRUPTED or predictions.name is None:
        return {}
    return accuracies(list(predictions.name), predictions.predicted == predictions.label)


def _predictions(
    artefact: Artefact, data: ImageData, split: str, label: np.ndarray, logits: Tensor
) -> Predictions:
    top = logits.topk(min(TOP, logits.shape[1])) if logits.shape[1] > MOST_CLASSES else None
    probability = logits.softmax(1)
    return Predictions(
        label,
        logits.argmax(1).numpy(),
        artefact.class_names,
        (probability if top is None else probability.gather(1, top.indices)).half().numpy(),
        None if top is None else top.indices.numpy(),
        np.array(data.splits[split].names),
    )


def _check_fit(artefact: Artefact, data: ImageData, split: str) -> list[int]:
    """The output of each class of the data."""
    if not len(data.splits[split]):
        raise UserError(f"data={data.name} has no images in its split {split!r}")
    got, want = (data.in_chans, data.image_size, data.image_size), artefact.input_size
    if got != want:
        shown = (" x ".join(map(str, size)) for size in (want, got))
        raise UserError(
            f"{artefact.what}: takes images of {next(shown)}; the data have {next(shown)}"
        )
    return outputs_of(data.class_names, artefact.class_names, artefact.what)


def metrics(label: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Accuracies as fractions, loss and calibration error."""
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    predicted, n = logits.argmax(1), len(label)
    order = np.argsort(-logits, 1, kind="stable")[:, : min(5, logits.shape[1])]
    chosen = probabilities[np.arange(n), label]
    return {
        "test/acc": float((predicted == label).mean()),
        "test/acc_top5": float((order == label[:, None]).any(1).mean()),
        "test/loss": float(-np.log(np.maximum(chosen, 1e-30)).mean()),
        "test/calibration_error": calibration_error(label, probabilities),
    }


def calibration_error(label: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error of the top class in 15 bins, Guo et al. 2017, equation 5."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == label
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean()
            for b in np.unique(bins)]  # fmt: skip
    return float(np.abs(gaps).sum())


def measure(artefact: Artefact, seconds: float, batch_size: int = 1) -> LatencyRecord:
    """Time a batch in the artefact's runtime, from what its graph takes to logits."""
    size = artefact.about.batch_size or batch_size
    x = random_input(size, artefact.input_size)
    if artefact.about.pixels:
        x = (x * 64 + 128).clamp(0, 255).to(torch.uint8)
    if artefact.model is not None:
        x = x.to(memory_format=torch.channels_last)
    with torch_threads(artefact.threads), torch.inference_mode():
        (timing,) = time_runs([lambda: artefact.call(x)], conditions(artefact, size), seconds)
    return timing.latency


def conditions(artefact: Artefact, batch_size: int) -> dict[str, Any]:
    """Conditions of a latency."""
    runtime = RUNTIMES.get(artefact.runtime)
    own = artefact.model is None and (runtime is None or runtime.own_format)
    return {
        "device": "cpu",
        "device_name": device_name(torch.device("cpu")),
        "threads": artefact.threads,
        "batch_size": batch_size,
        "precision": artefact.about.precision,
        "memory_format": OWN_FORMAT if own else "channels_last",
        "runtime": artefact.runtime,
    }


def _names(artefact: Artefact, data: ImageData) -> dict[str, Any]:
    """Keys that say which network this is, for one that no run recorded."""
    network, classes = artefact.about.network, artefact.about.num_classes
    conv = network.get("conv", "depthwise_separable")
    own = {
        "name": Path(artefact.what).stem,
        "model": network["name"],
        "conv": conv["name"] if isinstance(conv, dict) else conv,
        "width_mult": network.get("width_mult", 1.0),
        "output_stride": network.get("output_stride", 32),
        "network": network,
        "input_size": list(artefact.input_size),
        "data": {**data.describe(), "class_names": artefact.class_names, "num_classes": classes},
    }
    return {
        key: value
        for key, value in own.items()
        if key == "data" or key not in artefact.about.record
    }


def _origin(artefact: Artefact) -> dict[str, Any]:
    about = artefact.about
    return {
        "format": artefact.format,
        "runtime": artefact.runtime,
        "precision": about.precision,
        "file": Path(artefact.what).name,
        "quantisation": about.quantisation,
    }
