"""The pictures of a run: when it ends, and again from its folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dwsep_zoo.data import ImageData
from dwsep_zoo.data.loader import balanced_images
from dwsep_zoo.data.mix import partners
from dwsep_zoo.data.module import TrainingBatch
from dwsep_zoo.errors import UserError
from dwsep_zoo.nn.layers import is_depthwise
from dwsep_zoo.report.pictures import (
    Captioned,
    Course,
    Drawn,
    RunParts,
    draw_pictures,
    sheet_picture,
)
from dwsep_zoo.report.predictions import FILE_NAME as PREDICTIONS
from dwsep_zoo.report.predictions import Predictions
from dwsep_zoo.report.results import Run, load_results
from dwsep_zoo.schema.record import FILE_NAME as RECORD
from dwsep_zoo.schema.record import RunRecord
from dwsep_zoo.schema.settings import Settings, parse_settings
from dwsep_zoo.training.course import course_of
from dwsep_zoo.training.prepare import data_of, recorded_data
from dwsep_zoo.training.progressive import resize, training_size
from dwsep_zoo.weights import load

log = logging.getLogger("dwsep_zoo")

LAYERS = 3
"""Depthwise layers whose filters are drawn."""
SHEET_PICTURES, SHEET_EPOCHS = 8, 8


def leave_pictures(
    folder: Path,
    record: RunRecord,
    settings: Settings,
    epochs: Sequence[Mapping[str, float]],
    predictions: Predictions | None,
    data: ImageData,
    model: nn.Module,
) -> None:
    """Draw the pictures of a run that has just ended; what cannot be drawn is a warning."""

    def tested() -> Predictions:
        if predictions is None:
            raise UserError("the run had no test")
        return predictions

    drawn = draw_pictures(
        _parts(record, settings, epochs, tested, lambda: data, lambda: model), folder
    )
    if drawn.names:
        log.info("pictures    %s", ", ".join(drawn.names))
    for file, reason in drawn.failed.items():
        log.warning("%s could not be drawn: %s", file, reason)


def inspect_run(folder: Path) -> Drawn:
    """Draw the pictures of a run again, from its folder and its data.

    Nothing is downloaded and nothing is trained.

    Raises:
        UserError: if it is not the folder of a run, or its record cannot be read.
    """
    run, problems = _read(folder)
    record = run.record
    try:
        settings = parse_settings(record.config)
    except UserError as error:
        raise UserError(f"{folder}: its settings cannot be read: {error}") from error

    @cache
    def data() -> ImageData:
        found = recorded_data(settings, record.data)
        if found.fingerprint != record.data.fingerprint:
            raise UserError(f"data={found.name} has other images here than the run had")
        return found

    def tested() -> Predictions:
        if run.predictions is None:
            lacks = f"the run, which is {record.status}, has no {PREDICTIONS}"
            raise UserError(problems.get(PREDICTIONS, lacks))
        return run.predictions

    def model() -> nn.Module:
        if not any((folder / "checkpoints").glob("*.ckpt")):
            raise UserError("there is no checkpoint of the run")
        return load(folder)

    parts = _parts(record, settings, run.epochs, tested, data, model)
    return draw_pictures(parts, folder)


def training_sheet(settings: Settings) -> bytes:
    """A PNG of some training pictures in several epochs of a run with these settings.

    Raises:
        UserError: for data that cannot be had, or cannot be trained on.
    """
    data = data_of(settings)
    data.prepare_data()
    data.setup()
    epochs = range(min(SHEET_EPOCHS, settings.recipe.epochs))
    columns = [
        _for_display(data, settings, data.first_images(SHEET_PICTURES, e), e) for e in epochs
    ]
    title = f"{data.name}, seed {settings.seed}, read from {data.pipeline.read_from}"
    return sheet_picture(title, columns).png()


def _first_batch(data: ImageData, settings: Settings) -> Captioned:
    return _for_display(data, settings, data.first_batch(), 0)


def _for_display(
    data: ImageData, settings: Settings, batch: TrainingBatch, epoch: int
) -> Captioned:
    """Training images as the network gets them in an epoch, and what they show."""
    recipe = settings.recipe
    size = training_size(
        epoch / settings.trainer.max_epochs,
        full=batch.images.shape[-1],
        initial=recipe.initial_size,
        full_from=recipe.full_size_from,
    )
    pixels = data.for_display(resize(batch.images, size)).numpy()
    names, others = (
        [data.class_names[label] for label in labels.tolist()]
        for labels in (batch.labels, partners(batch.labels))
    )
    if batch.share is None:
        return pixels, names
    share = round(100 * batch.share.item())
    return pixels, [
        own if own == other else f"{share} % {own}\n{100 - share} % {other}"
        for own, other in zip(names, others, strict=True)
    ]


def _read(folder: Path) -> tuple[Run, dict[str, str]]:
    """The run in a folder, and why some of its files cannot be read."""
    file = folder / RECORD
    if not file.is_file():
        raise UserError(f"{folder}: not the folder of a run (it has no {RECORD})")
    runs, problems = load_results([file])
    reasons = {p.path.name: f"{p.path.name} cannot be read: {p.reason}" for p in problems}
    if not runs:
        raise UserError(f"{folder}: {reasons[RECORD]}")
    return runs[0], reasons


def _parts(
    record: RunRecord,
    settings: Settings,
    epochs: Sequence[Mapping[str, float]],
    predictions: Callable[[], Predictions],
    data: Callable[[], ImageData],
    model: Callable[[], nn.Module],
) -> RunParts:
    def batch() -> Captioned:
        return _first_batch(data(), settings)

    def test_images(places: NDArray[np.int64]) -> NDArray[np.float32]:
        found = data()
        return found.for_display(found.test_images(torch.from_numpy(places))).numpy()

    def filters() -> dict[str, NDArray[np.float32]]:
        depthwise = [(name, m) for name, m in model().named_modules() if is_depthwise(m)]
        return {
            name: module.weight.detach()[:, 0].float().cpu().numpy()
            for name, module in depthwise[:LAYERS]
        }

    def course() -> Course:
        if not record.network or "train" not in record.data.splits:
            raise UserError("the record has no network")
        images = record.data.splits["train"]
        if settings.data.sampler == "balanced" and not settings.trainer.overfit_batches:
            images = balanced_images(images, len(record.data.class_names))
        return course_of(
            settings,
            dict(record.network),
            images=images,
            image_size=record.data.image_size or 0,
        )

    return RunParts(record, epochs, predictions, batch, test_images, filters, course)
