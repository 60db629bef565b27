"""Images/s of ``Artefact.predict`` against a loop around the raw runtime.

Both sides read the same 1,000 generated PNG files of 32 x 32 pixels, in turns, in batches of 32:

* raw: Pillow, numpy and one call of the runtime, as a user would write it.
* predict: threads that decode ahead, and the names and probabilities of the five first classes.

    python benchmarks/predict_speed.py     # prints a table and writes results/predict_speed.json
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from record import Ratio, Record, finish, machine, parse, parser

from dwsep_zoo import Artefact, create_model, open_artefact
from dwsep_zoo.artefacts import export
from dwsep_zoo.hub import save_pretrained

SIDE, BATCH, CLASSES = 32, 32, 10
BAR = 0.8
FORMATS = {"pytorch": None, "onnx": ".onnx", "openvino": ".xml"}


def generate(folder: Path, count: int) -> list[Path]:
    """Write smooth pictures."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        paths.append(folder / f"{number:04}.png")
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def artefacts(folder: Path, paths: list[Path]) -> dict[str, Artefact]:
    """A network in each format, for any number of images."""
    model = create_model("mobilenet_v1", num_classes=CLASSES, output_stride=8, width_mult=0.5)
    model.default_cfg = {**model.default_cfg, "input_size": (3, SIDE, SIDE), "crop_pct": 1.0}
    with torch.no_grad():
        model(torch.randn(64, 3, SIDE, SIDE))
    save_pretrained(model.eval(), folder / "saved")
    source = open_artefact(folder / "saved")
    found = {"pytorch": source}
    for name, suffix in FORMATS.items():
        if suffix:
            file = folder / f"model{suffix}"
            export(source, name, file, batch_size=None, pictures=paths[:20])
            found[name] = open_artefact(file)
    return found


def raw(artefact: Artefact, paths: list[Path]) -> int:
    """Predict as a loop of one's own would."""
    mean, std = (np.array(t, np.float32) * 255 for t in (artefact.about.mean, artefact.about.std))
    count = 0
    with torch.inference_mode():
        for begin in range(0, len(paths), BATCH):
            pictures = []
            for path in paths[begin : begin + BATCH]:
                with Image.open(path) as image:
                    pictures.append(np.array(image.convert("RGB"), np.float32))
            x = np.ascontiguousarray(((np.stack(pictures) - mean) / std).transpose(0, 3, 1, 2))
            top = artefact.call(torch.from_numpy(x)).softmax(1).topk(5)
            count += len(top.indices)
    return count


def seconds(run: Callable[[], object]) -> float:
    begin = perf_counter()
    run()
    return perf_counter() - begin


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--count", type=int, default=1000)
    options = parse(arguments)
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = generate(folder, options.count)
        for form, artefact in artefacts(folder, paths).items():
            sides: dict[str, list[float]] = {"raw": [], "predict": []}
            for number in range(options.rounds + 1):
                times = {
                    "raw": seconds(partial(raw, artefact, paths)),
                    "predict": seconds(partial(artefact.predict, paths, batch_size=BATCH)),
                }
                for side, value in times.items() if number else ():  # the first one warms up
                    sides[side].append(options.count / value)
            speed = {f"{side} images/s": statistics.median(v) for side, v in sides.items()}
            paired = [p / r for p, r in zip(sides["predict"], sides["raw"], strict=True)]
            ratios.append(Ratio(f"{form}: predict / raw", statistics.median(paired), BAR, speed))
            print(form, {side: round(value) for side, value in speed.items()}, flush=True)
    conditions = (
        f"Median ratio of {options.rounds} rounds in turns; {options.count} PNG files of {SIDE} x "
        f"{SIDE}, MobileNetV1 at width 0.5, float32, batches of {BATCH}. {machine()}"
    )
    claim = "Predicting files with dwsep_zoo against a loop around the raw runtime: images/s"
    record = Record("predict_speed", claim, conditions, ratios, options.arguments)
    finish(record, check=options.check)


if __name__ == "__main__":
    main()
