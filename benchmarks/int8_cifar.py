"""What int8 costs the project's own CIFAR-10 networks, by conv type, on all 10,000 test images.

For each network of ``pretrained=cifar10``: the float file, int8 with one scale a layer (plain, then
with equalised channels and corrected biases), with a scale for each channel, both also with learned
rounding and with training in simulated int8 (``recipe=qat``) before. Calibrated with 32 training
images. Accuracies are those of OpenVINO's files, in OpenVINO.

    python benchmarks/int8_cifar.py --root data/cifar10     # writes results/int8_cifar.json
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from record import Ratio, Record, finish, machine, parse, parser
from turns import milliseconds

import dwsep_zoo
from dwsep_zoo import Artefact, open_artefact
from dwsep_zoo.artefacts import evaluate, export
from dwsep_zoo.config import compose_settings
from dwsep_zoo.quantise import quantise
from dwsep_zoo.schema.data_settings import DataSettings
from dwsep_zoo.weights.catalog import own_networks

DATASET = "cifar10"
CALIBRATION = 32
PER_CHANNEL, EQUALISED = 0.5, 1.0  # percentage points that may be lost


@dataclass(frozen=True)
class Variant:
    """A way to int8, and the points that it may lose."""

    scheme: str
    equalise: bool
    correct: bool
    learn: bool = False
    qat: bool = False
    bar: float | None = None


VARIANTS = {
    "per tensor, plain": Variant("per_tensor", False, False),
    "per tensor, equalised and corrected": Variant("per_tensor", True, True, bar=EQUALISED),
    "per tensor, equalised, learned rounding": Variant("per_tensor", True, True, learn=True),
    "per tensor, QAT": Variant("per_tensor", False, True, qat=True),
    "per channel": Variant("per_channel", False, True, bar=PER_CHANNEL),
    "per channel, learned rounding": Variant("per_channel", False, True, learn=True),
    "per channel, QAT": Variant("per_channel", False, True, qat=True),
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--root", default="data/cifar10", help="folder with train/ and test/")
    arguments.add_argument("--steps", type=int, default=100, help="of training in simulated int8")
    arguments.add_argument("--seconds", type=float, default=2.0, help="of timing one image")
    options = parse(arguments)
    if not Path(options.root).is_dir():
        arguments.error(f"--root: there is no folder {options.root}")
    data = compose_settings(["data=folder", f"data.root={options.root}"]).data
    ratios = []
    for name in own_networks(DATASET):
        ratios += network(name, data, options.root, options.steps, options.seconds)
    conditions = (
        f"Ratios of accuracies on 10,000 test images, int8 over float; lost: percentage points "
        f"with the half-width of their paired 95 % interval. QAT: {options.steps} steps of 128 "
        f"images. p50: one image, in turns. {machine()}"
    )
    claim = "int8 of the CIFAR-10 networks in OpenVINO"
    record = Record("int8_cifar", claim, conditions, ratios, options.arguments)
    finish(record, check=options.check)


def network(name: str, data: DataSettings, root: str, steps: int, seconds: float) -> list[Ratio]:
    """The ratios of a network, each printed when it is known."""
    source = open_artefact(f"{name}.{DATASET}")
    paths = sorted(Path(root, "train").glob("*/*"))
    chosen = np.random.default_rng(0).choice(len(paths), CALIBRATION + 8, replace=False)
    pictures = [paths[number] for number in chosen]
    found: list[Ratio] = []
    files: list[Path] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "float.xml")
        export(source, "openvino", file, pictures=pictures)
        right, _ = _measure(file, data)
        trained = {}
        for title, variant in VARIANTS.items():
            if variant.qat and variant.scheme not in trained:
                trained[variant.scheme] = _train(name, root, variant.scheme, steps, folder)
            file = Path(folder, f"{len(found)}.xml")
            quantise(
                trained[variant.scheme] if variant.qat else source,
                "openvino",
                file,
                scheme=variant.scheme,  # type: ignore[arg-type] # a word of the table above
                equalise=variant.equalise,
                learned_rounding=variant.learn,
                bias_correction=variant.correct,
                calibration=CALIBRATION,
                pictures=pictures,
            )
            files.append(file)
            own, size = _measure(file, data)
            found.append(_ratio(f"{name}, {title}", own, right, {"MB": size}, variant.bar))
            print(found[-1], flush=True)
        opened = [open_artefact(file) for file in files]
        times = milliseconds([one.call for one in opened], opened[0], seconds)
    return [
        replace(ratio, figures={**ratio.figures, "p50 ms": ms})
        for ratio, ms in zip(found, times, strict=True)
    ]


def _train(name: str, root: str, scheme: str, steps: int, folder: str) -> Artefact:
    """Train on in simulated int8."""
    model, _, conv = name.partition("-")
    width = open_artefact(f"{name}.{DATASET}").about.network["width_mult"]
    run = Path(folder, scheme)
    dwsep_zoo.train(
        *(f"model={model}", f"conv={conv or 'depthwise_separable'}", f"model.width_mult={width}"),
        *(f"model.pretrained={DATASET}", "data=folder", f"data.root={root}", "recipe=qat"),
        *(f"recipe.simulated_int8={scheme}", "trainer.max_epochs=1", f"paths.output_dir={run}"),
        *(f"trainer.limit_train_batches={steps}", "test=false", "profile.roofline=false"),
        *("trainer.precision=32-true", "trainer.limit_val_batches=0", "logger.pictures=false"),
    )
    return open_artefact(run)


def _measure(file: Path, data: DataSettings) -> tuple[np.ndarray, float]:
    """Which test images a file classifies correctly, and its size in MB."""
    artefact = open_artefact(file)
    found = evaluate(artefact, data, latency_s=0)
    return found.predictions.label == found.predictions.predicted, artefact.size_bytes / 1e6


def _ratio(
    case: str, own: np.ndarray, right: np.ndarray, figures: dict[str, float], bar: float | None
) -> Ratio:
    change = right.astype(int) - own
    spread = 1.96 * float(change.std()) / math.sqrt(len(change))
    figures = {
        "float %": 100 * float(right.mean()),
        "int8 %": 100 * float(own.mean()),
        "lost": 100 * float(change.mean()),
        "+-": 100 * spread,
        **figures,
    }
    least = None if bar is None else 1 - bar / figures["float %"]
    return Ratio(case, figures["int8 %"] / figures["float %"], least, figures)


if __name__ == "__main__":
    main()
