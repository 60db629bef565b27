"""``data.batch_size=auto``: a number for this network on this machine, chosen once a run.

The record has the number, so a resumed run and a comparison see no ``auto``.
"""

from __future__ import annotations

import copy
import logging
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from dwsep_zoo.acceleration import accelerate
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.settings import Recipe, Settings
from dwsep_zoo.training.out_of_memory import USABLE, memory_of, step_memory
from dwsep_zoo.training.prepare import Prepared
from dwsep_zoo.training.teacher import Teacher
from dwsep_zoo.training.trainer import device_of

log = logging.getLogger("dwsep_zoo")

SIZES = tuple(2**n for n in range(4, 11))
"""16 to 1,024; larger batches need recipes of their own."""
STEPS = 20
"""The least number of steps of an epoch, where the smallest size gives as many."""
GAIN = 0.95
"""On a CPU a batch of twice the size has to cost less than this part of the time of an image."""
REPEATS = 3


def with_batch_size(settings: Settings, prepared: Prepared) -> Settings:
    """The settings, with the number that ``data.batch_size=auto`` is for this run.

    Args:
        settings: those of the run.
        prepared: what it trains; its data get the number as well.
    """
    if settings.data.batch_size != "auto":
        return settings
    found = choose_batch_size(
        prepared.model,
        prepared.cost.input_size,
        images=prepared.data.epoch_images,
        device=device_of(settings.trainer.accelerator),
        teacher=prepared.teacher,
    )
    prepared.data.batch_size = found
    log.info("data.batch_size=%d, chosen for this machine%s", found, rate_note(settings.recipe))
    return settings.replace(data={**settings.data.plain(), "batch_size": found})


def choose_batch_size(
    model: nn.Module,
    input_size: Sequence[int],
    *,
    images: int,
    device: torch.device,
    teacher: Teacher | None = None,
) -> int:
    """The batch size of a training on one device.

    On a GPU it is the largest that fits by the bytes of a float32 step, which are counted, not
    tried: the same on every machine with as much memory. On a CPU it is the smallest that is as
    fast by the image as the next one, which is timed.

    Args:
        model: the network to train; it stays as it is.
        input_size: ``(C, H, W)`` of an image.
        images: of an epoch.
        device: the one that trains.
        teacher: of the network, which computes in every step.

    Raises:
        UserError: if not even the smallest size fits.
    """
    sizes = [size for size in SIZES if size * STEPS <= images] or [min(SIZES[0], images)]

    def need(size: int) -> int:
        return step_memory(model, input_size, size, teacher)

    fitting = sizes[: bisect_right(sizes, USABLE * memory_of(device), key=need)]
    if not fitting:
        raise UserError(
            f"data.batch_size=auto: not even {sizes[0]} images fit on this {device.type}; smaller "
            "images (data.image_size) or a narrower network (model.width_mult) are needed"
        )
    return fitting[-1] if device.type != "cpu" else _fastest(model, input_size, fitting, teacher)


def rate_note(recipe: Recipe) -> str:
    """What becomes of the learning rate, which is of the whole batch."""
    if recipe.lr_batch is not None:
        return f"; its rate follows from recipe.lr_batch={recipe.lr_batch}"
    return (
        f"; recipe.lr={recipe.lr:g} is used as it is: recipe.lr_batch=N makes it follow, and "
        "dwsep lr-find suggests another"
    )


def _fastest(
    model: nn.Module, input_size: Sequence[int], sizes: Sequence[int], teacher: Teacher | None
) -> int:
    own = copy.deepcopy(model).to(memory_format=torch.channels_last)
    network = accelerate(own).train()
    chosen, best = sizes[0], float("inf")
    with torch.random.fork_rng(devices=[]), _silent():  # dropout draws from it
        for size in sizes:
            images = torch.randn(size, *input_size)
            images = images.contiguous(memory_format=torch.channels_last)  # as those of the data
            seconds = _seconds(network, images, teacher) / size
            if seconds > GAIN * best:
                break
            chosen, best = size, seconds
    return chosen


@contextmanager
def _silent() -> Iterator[None]:
    """Leave out what the training itself will say once more."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    log.addFilter(nothing)
    try:
        yield
    finally:
        log.removeFilter(nothing)


def _seconds(network: nn.Module, images: torch.Tensor, teacher: Teacher | None) -> float:
    """The fastest of some steps, the first of which prepares."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        F.cross_entropy(network(images), labels).backward()
        if teacher:
            teacher(images)
        times.append(time.perf_counter() - begin)
    return min(times)
