"""The order of the images of an epoch, and a loader that can start in the middle of one.

Batch k of epoch e is a function of (seed, e, k) alone. The loader's state is therefore two
numbers, and a resumed run continues with the batches that it would have had.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dwsep_zoo.errors import UserError


class BatchKey(NamedTuple):
    """Images of a batch, and (seed, epoch, number, rank) for its random numbers.

    Attributes:
        indices: (N,) int64, of the images.
        rounds: (N,) int64: no image comes twice in the same round. A round is an epoch unless
            images are repeated within one.
    """

    seed: int
    epoch: int
    number: int
    rank: int
    indices: Tensor
    rounds: Tensor


class Order(NamedTuple):
    """The images of an epoch.

    Attributes:
        indices: (n,) int64.
        rounds: likewise, see :class:`BatchKey`.
    """

    indices: Tensor
    rounds: Tensor


Draw = Callable[[BatchKey], Tensor]
"""The whole numbers from which a batch is augmented, (N, k) int64."""


class RawBatch(NamedTuple):
    """A batch before it is augmented and normalised.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        training: whether it is for training.
        draws: (N, k) int64, for augmentation on the device; ``None``: the images need none.
        mix: (4,) int64, see :mod:`dwsep_zoo.data.mix`; ``None``: images stay apart.
    """

    images: Tensor
    labels: Tensor
    training: bool
    draws: Tensor | None = None
    mix: Tensor | None = None


class Reader(Protocol):
    """Makes batches; in worker processes it returns an error instead of raising it."""

    def __getitem__(self, key: BatchKey) -> RawBatch | UserError: ...


def generator(*key: int | str) -> torch.Generator:
    """A random number generator on the CPU, seeded with a hash of ``key``."""
    return torch.Generator().manual_seed(derived_seed(*key))


def derived_seed(*key: int | str) -> int:
    """A hash of ``key`` of 32 bits, as generators of torch and NumPy take."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "little")


def seed_generators(seed: int) -> None:
    """Seed the three generators from which timm and torchvision draw."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds every device


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed them, and put them back: it takes 0.2 ms, a tenth of what decoding a picture takes."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_generators(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


class EpochSampler:
    """Positions of the images of this process in the order of an epoch.

    Args:
        num_images: of the whole split.
        seed: of the order.
        shuffle: ``False``: every epoch in the order of the split.
        even: give every process equally many, dropping up to ``world_size - 1`` images an epoch;
            else each image once, and some processes one more than others.
        limit: only the first images of the order; ``None``: all.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        num_images: int,
        *,
        seed: int,
        shuffle: bool,
        even: bool,
        limit: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.num_images = num_images
        self.seed = seed
        self.shuffle = shuffle
        self.even = even
        self.used = num_images if limit is None else min(limit, num_images)
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        left = 0 if self.even else self.used % self.world_size
        return self.used // self.world_size + (self.rank < left)

    def order(self) -> Order:
        """The len(self) images; batch k of all processes together is batch k of a single one."""
        places = self._places()[self.rank : self.used : self.world_size][: len(self)]
        return self._images(places)

    def _places(self) -> Tensor:
        """The numbers below ``num_images`` in the order of the epoch."""
        if not self.shuffle:
            return torch.arange(self.num_images)
        return torch.randperm(self.num_images, generator=generator(self.seed, "order", self.epoch))

    def _images(self, places: Tensor) -> Order:
        return Order(places, torch.full_like(places, self.epoch))


def balanced_images(images: int, classes: int) -> int:
    """The images of a balanced epoch."""
    return images // classes * classes


class BalancedSampler(EpochSampler):
    """Every class equally often in an epoch, which is as long as the split, to rounding.

    With k classes among n images, an epoch has n // k images of each. Those of a class come round
    one after the other, in a new order each time: over the epochs each of them is shown equally
    often, to one time, and a rare one several times an epoch. An epoch remains a function of its
    seed and number.

    Args:
        labels: (n,) classes of the images.
        seed: of the order.
        limit: only the first images of the order; ``None``: all.
        rank: of this process.
        world_size: number of processes, all of which get equally many images.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        seed: int,
        limit: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        order = torch.from_numpy(np.argsort(labels, kind="stable"))
        self.classes = order.split(np.unique(labels, return_counts=True)[1].tolist())
        self.each = len(labels) // len(self.classes)  # of a class in an epoch
        super().__init__(
            balanced_images(len(labels), len(self.classes)),
            seed=seed,
            shuffle=True,
            even=True,
            limit=limit,
            rank=rank,
            world_size=world_size,
        )

    def _images(self, places: Tensor) -> Order:
        parts = zip(*(self._class(number) for number in range(len(self.classes))), strict=True)
        indices, rounds = (torch.cat(part)[places] for part in parts)
        return Order(indices, rounds)

    def _class(self, number: int) -> Order:
        """The images of a class, which come round without end, in this epoch."""
        images = self.classes[number]
        size, first = len(images), self.epoch * self.each
        rounds = torch.arange(first, first + self.each) // size
        begin = first // size
        orders = [
            torch.randperm(size, generator=generator(self.seed, "class", number, round_))
            for round_ in range(begin, int(rounds[-1]) + 1)
        ]
        own = torch.cat(orders)[first - begin * size :][: self.each]
        return Order(images[own], rounds)


class EpochBatches:
    """The keys of an epoch's batches, from batch ``start`` on.

    Args:
        sampler: the order of the images.
        batch_size: of this process.
        drop_last: leave out a last batch that is smaller.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, *, drop_last: bool):
        self.sampler = sampler  # where lightning looks for set_epoch
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.start = 0

    def __len__(self) -> int:
        missing = 0 if self.drop_last else self.batch_size - 1
        return (len(self.sampler) + missing) // self.batch_size

    def __iter__(self) -> Iterator[BatchKey]:
        sampler = self.sampler
        indices, rounds = (part.split(self.batch_size) for part in sampler.order())
        for number in range(self.start, len(self)):
            place = (sampler.seed, sampler.epoch, number, sampler.rank)
            yield BatchKey(*place, indices[number], rounds[number])


class Loader:
    """Batches of a split.

    It has the interface that Lightning looks for: ``batch_sampler.sampler.set_epoch`` and, for
    checkpoints, ``state_dict`` and ``load_state_dict``. Its length is that of a whole epoch, even
    if the first one starts in the middle.

    Args:
        reader: makes a batch from its key.
        batch_sampler: the keys.
        num_workers: processes that make batches, at most one a batch; 0: this process makes them.
        pin_memory: copy batches to pinned memory, from which copies to a GPU are asynchronous.
    """

    def __init__(
        self,
        reader: Reader,
        batch_sampler: EpochBatches,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        self.batch_sampler = batch_sampler
        self._batches: Iterable[RawBatch | UserError] = DataLoader(
            reader,  # type: ignore[arg-type]
            batch_size=None,  # the reader makes whole batches
            sampler=batch_sampler,
            num_workers=min(num_workers, max(1, len(batch_sampler))),
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            # Without workers, nothing is drawn from the generator of the network's dropout.
            generator=None if num_workers else torch.Generator(),
        )
        self._position = (0, 0)
        self._restart: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[RawBatch]:
        # A generator: nothing happens before the first batch, when the epoch has been set.
        epoch, done = self.batch_sampler.sampler.epoch, 0
        if self._restart and self._restart[0] == epoch and self._restart[1] < len(self):
            done = self._restart[1]
        self._restart = None
        self.batch_sampler.start = done
        for batch in self._batches:
            if isinstance(batch, UserError):
                # End the workers now: the error's traceback would keep them alive until garbage
                # collection, which waits five seconds for each.
                self._batches = ()
                break
            done += 1
            self._position = (epoch, done)
            yield batch
        else:
            return
        raise batch

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the number of its batches that were given out, and of all: plain numbers."""
        epoch, done = self._position
        return {"epoch": epoch, "done": done, "num_batches": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next pass after the batches that were given out, if its epoch is the same.

        Raises:
            UserError: if an epoch had another number of batches when the state was saved.
        """
        if state["num_batches"] != len(self):
            raise UserError(
                f"the checkpoint was saved inside an epoch of {state['num_batches']} batches, "
                f"this run's have {len(self)}; use the same data, batch size and devices"
            )
        self._position = self._restart = (state["epoch"], state["done"])
