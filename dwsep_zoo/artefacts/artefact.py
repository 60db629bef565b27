"""A trained network in a file, whatever its format: it predicts, is evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dwsep_zoo.analysis.device import torch_threads
from dwsep_zoo.analysis.runtimes import Call
from dwsep_zoo.artefacts.preprocess import Picture, denormalised, normalised, pixel_reader
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.artefact import Description
from dwsep_zoo.weights.classes import imagenet_classes

if TYPE_CHECKING:
    from dwsep_zoo.models import ConvNet

AHEAD = 2
"""Batches that are decoded while one is computed."""


@dataclass(frozen=True)
class Prediction:
    """What a network says about a picture.

    Attributes:
        name: the picture's file, or its number.
        classes: names of the most probable classes, the most probable first.
        probabilities: theirs.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass
class Artefact:
    """A trained network, its classes and how its images are prepared.

    Attributes:
        what: the file, folder or name that it was opened from.
        format: pytorch, onnx, openvino, torch_export ...
        runtime: what computes it.
        about: its description.
        size_bytes: of its file or files.
        call: ``(N, C, H, W)``, normalised float32 or, where ``about.pixels``, uint8, to
            ``(N, num_classes)``. Not for everyone: use :meth:`logits`.
        threads: CPU threads of a call.
        model: the network itself, if the artefact is PyTorch's.
    """

    what: str
    format: str
    runtime: str
    about: Description
    size_bytes: int
    call: Call = field(repr=False)
    threads: int
    model: ConvNet | None = field(default=None, repr=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the outputs: the artefact's, else ImageNet's for 1,000 of them, else numbers."""
        if self.about.class_names:
            return self.about.class_names
        ids, _ = imagenet_classes()
        if self.about.num_classes == len(ids):
            return ids
        return tuple(map(str, range(self.about.num_classes)))

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names in words, also where they are WordNet's ids."""
        ids, words = imagenet_classes()
        return words if self.class_names == ids else self.class_names

    @cached_property
    def _read(self) -> Any:
        return pixel_reader(self.about)

    def preprocess(self, pictures: Iterable[Picture]) -> Tensor:
        """``(N, C, image_size, image_size)`` normalised float32 of files, Pillow's or arrays.

        Raises:
            UserError: naming a picture that cannot be read.
        """
        return normalised(torch.stack([self._read(picture) for picture in pictures]), self.about)

    def logits(self, images: Tensor) -> Tensor:
        """``(N, num_classes)`` float32 of images as :meth:`preprocess` makes them.

        A file for another number of images at a time is called several times.
        """
        images = images.float()
        if images.ndim != 4 or images.shape[1:] != self.input_size:
            got, want = (" x ".join(map(str, s)) for s in (images.shape, ("N", *self.input_size)))
            raise UserError(f"{self.what}: images must have the shape {want}; got {got}")
        if self.about.pixels:
            images = denormalised(images, self.about)
        return self._outputs(images)

    @property
    def input_size(self) -> tuple[int, int, int]:
        return self.about.in_chans, self.about.image_size, self.about.image_size

    def _outputs(self, x: Tensor) -> Tensor:
        size = self.about.batch_size or len(x)
        with torch_threads(self.threads), torch.inference_mode():
            if len(x) == size:
                return self.call(x).float()
            parts = []
            for part in x.split(size):
                whole = part
                if len(part) < size:
                    whole = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
                parts.append(self.call(whole)[: len(part)].float())
            return torch.cat(parts)

    def predict(
        self, pictures: Iterable[Picture], *, top_k: int = 5, batch_size: int = 32
    ) -> list[Prediction]:
        """The most probable classes of each picture.

        Args:
            pictures: files, Pillow's pictures, or arrays of uint8.
            top_k: number of classes to name.
            batch_size: pictures at a time.

        Raises:
            UserError: naming a picture that cannot be read.
        """
        found = []
        for _, batch in self.predict_batches(pictures, top_k=top_k, batch_size=batch_size):
            for one in batch:
                if isinstance(one, UserError):
                    raise one
                found.append(one)
        return found

    def predict_batches(
        self, pictures: Iterable[Picture], *, top_k: int = 5, batch_size: int = 32
    ) -> Iterator[tuple[Sequence[Picture], list[Prediction | UserError]]]:
        """Predict as :meth:`predict` does; an unreadable picture has its error in its place.

        Pictures are decoded in threads while others are computed.
        """
        numbered = enumerate(pictures)
        top_k = min(top_k, self.about.num_classes)
        batch_size = self.about.batch_size or batch_size

        def load(batch: list[tuple[int, Picture]]) -> list[Tensor | UserError]:
            return [_tried(self._read, picture) for _, picture in batch]

        def batches() -> Iterator[tuple[list[tuple[int, Picture]], Future[Any]]]:
            while batch := list(islice(numbered, batch_size)):
                yield batch, pool.submit(load, batch)

        with ThreadPoolExecutor(AHEAD) as pool:
            waiting = batches()
            queue = list(islice(waiting, AHEAD))
            while queue:
                batch, future = queue.pop(0)
                pixels = future.result()
                queue += islice(waiting, 1)
                yield [picture for _, picture in batch], self._named(batch, pixels, top_k)

    def _named(
        self,
        batch: Sequence[tuple[int, Picture]],
        pixels: Sequence[Tensor | UserError],
        top_k: int,
    ) -> list[Prediction | UserError]:
        good = [p for p in pixels if isinstance(p, Tensor)]
        if not good:
            return [p for p in pixels if isinstance(p, UserError)]
        stacked = torch.stack(good)
        x = stacked if self.about.pixels else normalised(stacked, self.about)
        top = self._outputs(x).softmax(1).topk(top_k)
        rows = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        labels = self.labels
        found: list[Prediction | UserError] = []
        for (number, picture), pixel in zip(batch, pixels, strict=True):
            if isinstance(pixel, UserError):
                found.append(pixel)
                continue
            values, indices = next(rows)
            name = str(picture) if isinstance(picture, str | Path) else str(number)
            found.append(Prediction(name, tuple(labels[i] for i in indices), tuple(values)))
        return found

    def export(self, format: str, out: str | Path | None = None, **options: Any) -> Any:
        """Write it in another format; see :func:`dwsep_zoo.artefacts.export.export`."""
        from dwsep_zoo.artefacts.export import export

        return export(self, format, out, **options)

    def evaluate(self, data: Any = None, **options: Any) -> Any:
        """Test it on data, else its own; see :func:`dwsep_zoo.artefacts.evaluate.evaluate`."""
        from dwsep_zoo.artefacts.evaluate import evaluate

        return evaluate(self, data, **options)

    def quantise(self, to: str, out: str | Path | None = None, **options: Any) -> Any:
        """Write it in int8; see :func:`dwsep_zoo.quantise.quantise`."""
        from dwsep_zoo.quantise import quantise

        return quantise(self, to, out, **options)


def _tried(read: Any, picture: Picture) -> Tensor | UserError:
    try:
        pixels: Tensor = read(picture)
        return pixels
    except UserError as error:
        return error
