"""Put the network of a finished run among the weights that this project brings along.

The folder ``dwsep_zoo/weights/trained/DATASET/NAME`` gets the weights (convolutions and classifier
in half precision, the rest in float32), ``config.json``, the run's record without its places, and a
card. The network that is stored is tested again, and its accuracy is the card's.

    python benchmarks/own_weights.py logs/train/runs/RUN cifar10 --root data/cifar10
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from dwsep_zoo import open_artefact
from dwsep_zoo.artefacts import evaluate
from dwsep_zoo.files import sha256_of
from dwsep_zoo.hub import save_pretrained
from dwsep_zoo.schema.record import RunRecord, read_record
from dwsep_zoo.schema.settings import parse_settings
from dwsep_zoo.weights import load
from dwsep_zoo.weights.catalog import OWN, own_name

LEFT_OUT = ("process", "roofline", "memory")
CARD = """\
# {name}, trained on {dataset}

    dwsep predict {name}.{dataset} picture.png
    dwsep_zoo.load("{name}.{dataset}")

- Network: `{model}`, conv={conv}, width {width_mult:g}, {params:,} parameters, {macs:.1f} M
  multiply-adds for {size}
- Test accuracy: {accuracy:.2%} of the {tested:,} test images, one view of each, one seed ({seed})
- Data: CIFAR-10 (JPEG), {trained:,} training images (Krizhevsky 2009, "Learning Multiple Layers of
  Features from Tiny Images"); an accuracy on the uncompressed images may differ a little
- Trained with `{command}`: {epochs} epochs, {minutes:.0f} minutes on
  {device}
- `model.safetensors`: SHA-256 {digest}
"""


def store(run: Path, dataset: str, root: str) -> Path:
    """Write the folder of a run's network; returns it."""
    record = read_record(run / "result.json")
    folder = OWN / dataset / own_name(str(record.model), str(record.conv))
    save_pretrained(load(run), folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    # Statistics and scales of norms are small in size and large in range.
    half = {name: t.half() if t.ndim > 1 else t for name, t in tensors.items()}
    save_file(half, file, metadata={"format": "pt"})
    data = parse_settings(record.config).data.replace(root=root)
    found = evaluate(open_artefact(folder), data, latency_s=0)
    accuracy = float(found.record.metrics["test/acc"] or 0)
    kept = {**_without_places(record), "metrics": {**record.metrics, "test/acc": accuracy}}
    (folder / "result.json").write_text(json.dumps(kept, indent=1) + "\n")
    (folder / "README.md").write_text(_card(record, folder, dataset, accuracy, sha256_of(file)))
    return folder


def _without_places(record: RunRecord) -> dict[str, object]:
    values = {key: value for key, value in record.plain().items() if key not in LEFT_OUT}
    config = dict(record.config)
    config["paths"] = {**config["paths"], "data_dir": "data", "output_dir": "logs"}  # type: ignore[dict-item]
    return {**values, "config": config}


def _card(record: RunRecord, folder: Path, dataset: str, accuracy: float, digest: str) -> str:
    splits, threads = record.data.splits, record.machine.threads or 0
    return CARD.format(
        name=folder.name,
        dataset=dataset,
        model=record.model,
        conv=" ".join([str(record.conv), *_options(record)]),
        width_mult=record.width_mult,
        params=record.params,
        macs=(record.macs or 0) / 1e6,
        size="x".join(map(str, record.input_size or ())),
        accuracy=accuracy,
        tested=splits["test"],
        trained=splits["train"],
        seed=record.seed,
        command=record.command,
        epochs=record.epochs,
        minutes=(record.time.train_s or 0) / 60,
        device=f"{record.machine.cpu}, {threads} thread{'s' * (threads != 1)}",
        digest=digest,
    )


def _options(record: RunRecord) -> list[str]:
    return [f"conv.{k}={v}" for k, v in record.conv_options.items() if v is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--root", default="data/cifar10", help="folder with train/ and test/")
    options = parser.parse_args()
    print(store(options.run, options.dataset, options.root))


if __name__ == "__main__":
    main()
