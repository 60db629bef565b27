"""Whether exported files compute what PyTorch computes: ten networks, three formats, 200 pictures.

EfficientNet-Lite0 has its published weights. The other networks have random weights and the norm
statistics of these pictures, so that activations have the sizes of a trained network's; their
images have 128 pixels. Each file
computes all pictures in its own runtime, OpenVINO in float32. The class counts where the two
largest logits are more than 0.001 apart.

    python benchmarks/agreement.py --root imagenet-samples    # writes results/agreement.json
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from record import Ratio, Record, finish, machine, parse, parser

from dwsep_zoo import Artefact, create_model, load, open_artefact
from dwsep_zoo.artefacts import export
from dwsep_zoo.artefacts.export import logits
from dwsep_zoo.artefacts.formats import FORMATS
from dwsep_zoo.data.listing import find_pictures
from dwsep_zoo.hub import save_pretrained
from dwsep_zoo.models import ConvNet
from dwsep_zoo.training.norm_statistics import batch_moments, norms_of, set_statistics
from dwsep_zoo.weights.catalog import LITE0_PACKAGE

NETWORKS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_lite0", "xception")
CONVS = ("depthwise_separable", "standard")
CLOSE = 1e-4  # of the largest logit
COUNT, BATCH, SEED, SIDE = 200, 20, 0, 128


def network(name: str, conv: str, pictures: list[Path], folder: Path) -> Artefact:
    """A network that behaves like a trained one."""
    if (name, conv) == ("efficientnet_lite0", "depthwise_separable"):
        model = load(LITE0_PACKAGE)
    else:
        torch.manual_seed(SEED)
        model = create_model(name, conv=conv)
        model.default_cfg = {**model.default_cfg, "input_size": (3, SIDE, SIDE)}
        _calibrate(model, pictures, folder)
    save_pretrained(model, folder / "network")
    return open_artefact(folder / "network")


def _calibrate(model: ConvNet, pictures: list[Path], folder: Path) -> None:
    save_pretrained(model, folder / "network")
    images = open_artefact(folder / "network").preprocess(pictures[::5])
    norms = norms_of(model.eval())
    with torch.no_grad():
        moments = torch.stack(list(batch_moments(model, norms, images.split(BATCH))))
    set_statistics(norms, moments)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--root", default="imagenet-samples", help="folder of pictures")
    arguments.add_argument("--only", choices=NETWORKS)
    options = parse(arguments)
    root = Path(options.root)
    if not root.is_dir():
        arguments.error(f"--root: there is no folder {root}")
    pictures = [root / name for name in find_pictures(root).names][:COUNT]
    ratios = []
    for name in NETWORKS:
        for conv in CONVS if options.only in (None, name) else ():
            with tempfile.TemporaryDirectory() as folder:
                ratios += _ratios(name, conv, pictures, Path(folder))
    conditions = (
        f"Share of {len(pictures)} pictures with PyTorch's top-1 class; difference: the largest of "
        f"a logit, over the largest logit, which must be within {CLOSE:g}. {machine()}"
    )
    claim = "Exported files against PyTorch"
    record = Record("agreement", claim, conditions, ratios, options.arguments)
    finish(record, check=options.check)


def _ratios(name: str, conv: str, pictures: list[Path], folder: Path) -> list[Ratio]:
    artefact = network(name, conv, pictures, folder)
    largest = float(logits(artefact, artefact.preprocess(pictures)).abs().max())
    found = []
    for kind, about in FORMATS.items():
        if about.missing():
            continue
        file = folder / f"model{about.suffix}"
        made = export(artefact, kind, file, pictures=pictures)
        difference = made.max_logit_difference / largest
        agrees = made.top1_agreement if difference <= CLOSE else 0.0
        figures = {"largest logit": largest, "difference": difference}
        found.append(Ratio(f"{name}, {conv}, {kind}", agrees, 1.0, figures))
        print(found[-1], flush=True)
    return found


if __name__ == "__main__":
    main()
