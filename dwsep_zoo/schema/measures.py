"""The measures of a run: what a report shows, each declared once.

Columns of the table, CSV, JSON and LaTeX, the figures and TensorBoard's HPARAMS go through
``MEASURES`` in its order. A new entry that reads the record appears wherever it asks to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dwsep_zoo.schema.record import Conditions, RunRecord

Place = Literal["table", "csv", "json", "page"]


@dataclass(frozen=True)
class Measure:
    """A number that a record holds or that follows from it.

    Attributes:
        name: of its column in CSV and its key in JSON, which hold the value as it is.
        label: short, for headings.
        unit: that people see; values are divided by ``scale`` for it.
        value: reads the record; ``None`` if it was not measured.
        places: formats that list it; ``page`` is the table of sizes in the HTML page.
        over_seeds: ``first``: equal in all runs of a row; ``mean``: a duration that depends on the
            machine, so that there is none across different machines; ``median``.
        ratio: name of its ratio to the reference; empty: it has none.
        axis: label of its axis in the figures, unit included; empty: it is not plotted.
        tag: its tag in TensorBoard, with which it is a column of HPARAMS; empty: it is none.
        words: its ratio in words, below, at and above 1, for the headline; ``None``: not in it.
    """

    name: str
    label: str
    unit: str
    value: Callable[[RunRecord], float | None]
    places: tuple[Place, ...] = ()
    scale: float = 1.0
    over_seeds: Literal["first", "mean", "median"] = "first"
    ratio: str = ""
    axis: str = ""
    tag: str = ""
    words: tuple[str, str, str] | None = None

    @property
    def heading(self) -> str:
        """The label with the unit, such as ``params M``."""
        return f"{self.label} {self.unit}"

    def under(self, conditions: Conditions) -> Measure:
        """The latency under these conditions only."""
        return replace(self, value=lambda r: getattr(r.latency_under(conditions), "p50_ms", None))


def _size_mb(record: RunRecord) -> float | None:
    return None if record.size_bytes is None else record.size_bytes / 1e6


def _activations_mb(record: RunRecord) -> float | None:
    peak, weights = record.memory.inference_mb, _size_mb(record)
    return None if peak is None or weights is None else peak - weights


TEST_ACC = Measure(
    "test_acc", "test acc", "%", lambda r: r.metrics.get("test/acc"), scale=0.01, tag="test/acc"
)
BALANCED_ACC = Measure(
    "balanced_acc",
    "balanced acc",
    "%",
    lambda r: r.per_class.balanced_acc if r.per_class else None,
    scale=0.01,
    tag="test/balanced_acc",
)
LATENCY = Measure(
    "latency",
    "p50",
    "ms",
    lambda r: r.latency[0].p50_ms if r.latency else None,
    places=("table",),  # CSV and JSON have all percentiles under all conditions
    over_seeds="median",
    ratio="latency_ratio",
    axis="median latency of one batch, ms",
    tag="perf/latency_ms_p50",
    words=("faster here", "as fast here", "slower here"),
)
MEASURES: tuple[Measure, ...] = (
    TEST_ACC,
    BALANCED_ACC,
    Measure(
        "val_acc",
        "val acc",
        "%",
        lambda r: r.metrics.get("val/acc"),
        scale=0.01,
        tag="best/val_acc",
    ),
    Measure(
        "params",
        "params",
        "M",
        lambda r: r.params,
        ("table", "csv", "json"),
        1e6,
        ratio="params_ratio",
        axis="parameters, millions",
        tag="perf/params_m",
    ),
    Measure(
        "macs",
        "MACs",
        "M",
        lambda r: r.macs,
        ("table", "csv", "json"),
        1e6,
        ratio="macs_ratio",
        axis="MACs of one image, millions",
        tag="perf/macs_m",
        words=("fewer MACs", "as many MACs", "more MACs"),
    ),
    LATENCY,
    Measure("size_bytes", "file", "bytes", lambda r: r.size_bytes, ("csv", "json")),
    Measure("size_mb", "file", "MB", _size_mb, ("page",), tag="perf/size_mb"),
    Measure("inference_mb", "inference", "MB", lambda r: r.memory.inference_mb, ("csv", "page")),
    Measure("activations_mb", "activations", "MB", _activations_mb, ("csv", "json", "page")),
    Measure("training_mb", "training", "MB", lambda r: r.memory.training_mb, ("csv", "page")),
    Measure("peak_mb", "peak of the run", "MB", lambda r: r.memory.peak_mb, ("page",)),
    Measure(
        "train_s",
        "train",
        "s",
        lambda r: r.time.train_s,
        ("table", "csv", "json"),
        over_seeds="mean",
        ratio="train_ratio",
        tag="perf/train_s",
    ),
    Measure(
        "images_per_second",
        "speed",
        "images/s",
        lambda r: r.images_per_second,
        ("csv", "json"),
        over_seeds="mean",
    ),
)


def measures(
    conditions: Sequence[Conditions] = (), place: Place | None = None
) -> Iterator[Measure]:
    """The measures in order, with one latency for each of the given conditions.

    Args:
        conditions: of the latencies; without any the latency is left out.
        place: only those that are listed there; ``None``: all.
    """
    for measure in MEASURES:
        if place is None or place in measure.places:
            yield from map(measure.under, conditions) if measure is LATENCY else (measure,)


def hparams_metrics(record: RunRecord) -> dict[str, float | None]:
    """The columns of TensorBoard's HPARAMS by tag: test accuracy and latency, then the others.

    Accuracies are fractions, as in the curves; counts are in millions, which the page would print
    as ``1.7717e+6``. The best validation has a tag of its own, not a further point in the curve.
    """
    columns = (TEST_ACC, LATENCY, *(m for m in MEASURES if m.tag))
    values = {measure: measure.value(record) for measure in columns}
    return {m.tag: v if v is None else v / max(m.scale, 1) for m, v in values.items()}
