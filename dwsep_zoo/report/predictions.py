"""``predictions.npz``: what a network made of each image of the test."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE_NAME = "predictions.npz"
MOST_CLASSES, TOP = 100, 10
"""With more classes than this, only the highest probabilities of an image are kept: so many."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The class that a network predicts for each image of a test set.

    Files of earlier versions have labels and predictions alone.

    Attributes:
        label: (N,) the true classes, in the order of the test set.
        predicted: (N,) the classes that the network predicts.
        class_names: in the order of the labels.
        probability: (N, K) float16, of each class, or of the K classes in ``top``.
        top: (N, K) the most probable classes, falling; ``None``: all classes in their order.
        name: of each image: the path of its file below the data set's folder, or its number in a
            set without files.
    """

    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    class_names: tuple[str, ...] = ()
    probability: NDArray[np.float16] | None = None
    top: NDArray[np.int64] | None = None
    name: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def accuracy(self) -> float:
        return float((self.label == self.predicted).mean())

    def probability_of(self, classes: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N,) the probability of one class for each image; NaN where it was not kept."""
        import numpy as np

        if self.probability is None:
            return np.full(len(self), np.nan, np.float32)
        probability = self.probability.astype(np.float32)
        if self.top is None:
            return probability[np.arange(len(self)), classes]
        is_it = self.top == classes[:, None]
        found = np.where(is_it, probability, 0).sum(1)
        return np.where(is_it.any(1), found, np.nan).astype(np.float32)

    def of_class(self, number: int) -> Predictions:
        """Those of the images of one class, without names and probabilities."""
        own = self.label == number
        return Predictions(self.label[own], self.predicted[own])

    def npz(self) -> bytes:
        """The content of the file; what is not known is left out."""
        import numpy as np

        class_names = np.array(self.class_names) if self.class_names else None
        known: dict[str, Any] = {
            **{"label": self.label, "predicted": self.predicted, "class_names": class_names},
            **{"probability": self.probability, "top": self.top, "name": self.name},
        }
        arrays = {key: array for key, array in known.items() if array is not None}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()


def read_predictions(file: Path) -> Predictions:
    """Read ``predictions.npz`` of this or an earlier version; numpy runs no code from it.

    Raises:
        ValueError: if the arrays do not fit together; a damaged file raises errors of libraries.
        OSError: if it cannot be opened.
    """
    import numpy as np

    with file.open("rb") as stream:  # numpy leaves a damaged file open
        arrays = np.load(stream, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is no .npz")
        label, predicted = arrays["label"], arrays["predicted"]
        names, probability, top, name = (
            arrays[key] if key in arrays.files else None
            for key in ("class_names", "probability", "top", "name")
        )
    if label.ndim != 1 or label.shape != predicted.shape or not label.size:
        raise ValueError(f"label is {label.shape} and predicted {predicted.shape}, not (N,) both")
    if not all(np.issubdtype(array.dtype, np.integer) for array in (label, predicted)):
        raise ValueError(f"label is {label.dtype} and predicted {predicted.dtype}, not integers")
    _check("class_names", names, np.str_, (None,))
    _check("name", name, np.str_, label.shape)
    _check("top", top, np.integer, (len(label), None))
    width = top.shape[1] if top is not None else None if names is None else len(names)
    _check("probability", probability, np.floating, (len(label), width))
    classes = [array for array in (label, predicted, top) if array is not None and array.size]
    known = np.inf if names is None else len(names)
    if any(array.min() < 0 or array.max() >= known for array in classes):
        raise ValueError("it has classes without a name")
    class_names = () if names is None else tuple(names.tolist())
    return Predictions(label, predicted, class_names, probability, top, name)


def _check(
    name: str,
    array: NDArray[Any] | None,
    kind: type,
    shape: tuple[int | None, ...],
) -> None:
    """Raises ValueError for an array of another type or shape; ``None`` fits any length."""
    import numpy as np

    if array is None:
        return
    fits = array.ndim == len(shape) and all(
        want in (None, have) for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits or not np.issubdtype(array.dtype, kind):
        raise ValueError(f"{name} is {array.dtype} {array.shape}, which does not fit the others")
