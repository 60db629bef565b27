"""Out of memory: recognised, and answered with a batch size that fits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from dwsep_zoo.analysis.memory import training_memory
from dwsep_zoo.errors import UserError
from dwsep_zoo.training.prepare import Prepared
from dwsep_zoo.training.teacher import Teacher

USABLE = 0.8  # of a device's memory; libraries and gaps between blocks take the rest


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def naming_a_batch_size(prepared: Prepared, device: torch.device) -> Iterator[None]:
    """Within, an error of a full memory becomes a UserError with a batch size that would fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(
            prepared.model,
            prepared.cost.input_size,
            prepared.data.batch_size,
            device,
            prepared.teacher,
        ) from error


def step_memory(
    model: nn.Module, input_size: Sequence[int], images: int, teacher: Teacher | None = None
) -> int:
    """Bytes of a float32 training step, counted; with a teacher's it is an upper bound.

    Args:
        model: the network in training.
        input_size: ``(C, H, W)`` of an image.
        images: of a batch.
        teacher: computes on the same device.
    """
    own = training_memory(model, input_size, batch_size=images)
    return own + (teacher.memory(images) if teacher else 0)


def out_of_memory(
    model: nn.Module,
    input_size: Sequence[int],
    batch_size: int,
    device: torch.device,
    teacher: Teacher | None = None,
) -> UserError:
    """The error to raise, with a batch size that would fit, estimated from a step's tensors.

    Args:
        model: the network in training.
        input_size: ``(C, H, W)`` of an image.
        batch_size: the size that did not fit.
        device: the device that ran out.
        teacher: of the network.
    """

    def need(images: int) -> int:
        return step_memory(model, input_size, images, teacher)

    # In small batches the gradients of the weights make the peak, in large ones the activations.
    half = max(2, batch_size // 2)
    each = (need(2 * half) - need(half)) / half
    fits = half + int((USABLE * memory_of(device) - need(half)) / each)
    fits = min(max(1, fits), batch_size // 2)  # the estimate may be too large
    if not fits:
        return UserError(
            f"out of memory with data.batch_size=1 on this {device.type}: smaller images "
            "(data.image_size) or a narrower network (model.width_mult) are needed"
        )
    size = smaller_batch(batch_size, fits)
    steps = -(-batch_size // size)
    return UserError(
        f"out of memory with data.batch_size={batch_size}; about {fits} would fit on this "
        f"{device.type}: data.batch_size={size} trainer.accumulate_grad_batches={steps} makes "
        f"steps of {steps * size} images"
    )


def smaller_batch(batch_size: int, fits: int) -> int:
    """The batch size, at most ``fits``, whose multiple comes nearest to ``batch_size``.

    A divisor gives steps of as many images, but a small one would cost speed.
    """
    divisor = max(size for size in range(1, fits + 1) if batch_size % size == 0)
    return divisor if 2 * divisor >= fits else -(-batch_size // -(-batch_size // fits))


def memory_of(device: torch.device) -> int:
    """Bytes of memory in a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
