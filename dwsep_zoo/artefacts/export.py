"""Writing a network in another format, and checking there what it computes."""

from __future__ import annotations

import copy
import json
import shlex
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dwsep_zoo.analysis.runtimes import EXACT_INT8, exported, random_input
from dwsep_zoo.artefacts.data import batches, data_for, has_own_data, own_settings, ready
from dwsep_zoo.artefacts.formats import FORMATS, Format
from dwsep_zoo.artefacts.open import open_artefact
from dwsep_zoo.artefacts.preprocess import Picture
from dwsep_zoo.errors import UserError, choose, first_line
from dwsep_zoo.files import write_together
from dwsep_zoo.schema.artefact import Description

if TYPE_CHECKING:
    from dwsep_zoo.artefacts.artefact import Artefact

CHECKED = 200  # images
MADE_BY = "exported by dwsep_zoo"
SURE = 1e-3
"""A top-1 class counts only if its logit is larger than the next one by this."""
TOLERANCE = 1e-3  # of logits, relative to the largest


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how it agrees with PyTorch.

    Attributes:
        format: of the file.
        files: main file first.
        size_bytes: of all files.
        images: number of images compared, and whether they were pictures or random.
        max_logit_difference: largest difference of a logit.
        top1_agreement: share of images with the same top-1 class, of those whose two largest
            logits are not within 0.001.
    """

    format: str
    files: tuple[str, ...]
    size_bytes: int
    images: int
    real: bool
    max_logit_difference: float
    top1_agreement: float

    def line(self) -> str:
        what = "pictures" if self.real else "random images (name pictures=FOLDER for real ones)"
        return (
            f"{self.files[0]}: {self.size_bytes / 1e6:.1f} MB; the same top-1 class in "
            f"{self.top1_agreement:.1%} of {self.images} {what}, logits within "
            f"{self.max_logit_difference:.1e}"
        )


class FromPixels(nn.Module):
    """A network behind the normalisation of uint8 pixels."""

    shift: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.model = model
        shape = (1, len(mean), 1, 1)
        self.register_buffer("shift", torch.tensor(mean).view(shape) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(shape) * 255))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model((pixels.float() - self.shift) * self.scale)
        return logits


def export(
    artefact: Artefact,
    format: str,
    out: str | Path | None = None,
    *,
    batch_size: int | None = 1,
    pixels: bool = False,
    pictures: Iterable[Picture] | None = None,
    data_dir: str | Path = "data",
) -> Exported:
    """Write a network in another format, open the file, and compare outputs with PyTorch's.

    The file carries its classes and preprocessing. A folder with a model card is not written until
    the outputs agree.

    Args:
        artefact: one that holds a network of PyTorch: a run, a checkpoint, published weights.
        format: one of ``FORMATS``: onnx, openvino, torch_export, executorch, litert.
        out: the file; ``None``: ``export/model`` in the folder of the run.
        batch_size: images of a call; ``None``: any number.
        pixels: put the normalisation into the file, which then takes uint8.
        pictures: to compare on; ``None``: the first 200 test images of the run's data, or random
            ones where there is no run.
        data_dir: folder of downloaded sets and caches.

    Raises:
        UserError: for an artefact that is a file of another format, a format that cannot be written
            here, or outputs that differ.
    """
    kind = FORMATS[choose(format, FORMATS, "format")]
    kind.check_batch(f"format={format}", batch_size)
    if line := kind.missing():
        raise UserError(f"format={format} needs {', '.join(kind.packages)}; install: {line}")
    if artefact.model is None:
        raise UserError(
            f"{artefact.what}: is a file of {artefact.format}; export the run that it was made from"
        )
    path = output(artefact, out, kind)
    about = artefact.about.replace(batch_size=batch_size, pixels=pixels)
    images, real = compared_images(artefact, pictures, data_dir)
    contents = kind.write(graph(artefact.model, about), about)
    return check_and_write(artefact, format, path, contents, images, real)


def graph(model: nn.Module, about: Description) -> torch.export.ExportedProgram:
    """The graph of a network as a file has it."""
    network: nn.Module = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
    size = (about.in_chans, about.image_size, about.image_size)
    x = random_input(about.batch_size or 2, size)
    if about.pixels:
        network = FromPixels(network, about.mean, about.std).eval()
        x = (x * 64 + 128).clamp(0, 255).to(torch.uint8)
    return exported(network, x, any_batch=about.batch_size is None)


def check_and_write(
    artefact: Artefact,
    format: str,
    path: Path,
    contents: dict[str, bytes],
    images: Tensor,
    real: bool,
    *,
    exact: bool = True,
) -> Exported:
    """Compare what was made with its source; write it if they agree.

    Args:
        artefact: the source.
        format: of the file.
        path: of the main file.
        contents: of all files by suffix.
        images: to compare on.
        real: whether they are pictures.
        exact: whether outputs must be equal, not only finite: false for rounded weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, path.name)
        for suffix, content in contents.items():
            made.with_suffix(suffix).write_bytes(content)
        try:
            theirs = open_artefact(made, threads=artefact.threads)
            got = logits(theirs, images)
        except RuntimeError as error:
            raise UserError(
                f"format={format}: cannot run what was written: {first_line(error)}"
            ) from error
        want = logits(artefact, images)
        difference, agreement = compare(got, want)
    within = difference <= TOLERANCE * float(want.abs().max()) and agreement == 1
    if not (within if exact else got.isfinite().all()):
        raise UserError(
            f"format={format}: nothing is written, as its outputs are not PyTorch's: logits differ "
            f"by {difference:.2g}, the top-1 class is the same in {agreement:.1%}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path, *(path.with_suffix(s) for s in contents if s != path.suffix)]
    names, size = tuple(map(str, files)), theirs.size_bytes
    found = Exported(format, names, size, len(images), real, difference, agreement)
    readme = _card_of(path)
    write_together(
        {
            **{path.with_suffix(suffix): content for suffix, content in contents.items()},
            readme: card(artefact, theirs.about, path, found, _text(readme)),
            path.with_suffix(f"{path.suffix}.json"): json.dumps(asdict(found), indent=2) + "\n",
        }
    )
    return found


def _card_of(path: Path) -> Path:
    """README.md beside a file, unless there is one that this project did not write."""
    readme = path.with_name("README.md")
    if readme.exists() and MADE_BY not in _text(readme):
        return path.with_suffix(f"{path.suffix}.md")
    return readme


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def output(artefact: Artefact, out: str | Path | None, kind: Format, stem: str = "model") -> Path:
    """Where a file goes.

    Raises:
        UserError: for another suffix, or no name where there is no run.
    """
    folder = Path(artefact.what).expanduser()
    if out is None and not folder.is_dir():
        raise UserError(f"{artefact.what}: is no folder; name the file with out=NAME{kind.suffix}")
    path = folder / "export" / f"{stem}{kind.suffix}" if out is None else Path(out).expanduser()
    if path.suffix != kind.suffix:
        raise UserError(f"out={out}: the file of this format ends in {kind.suffix}")
    return path


def compared_images(
    artefact: Artefact, pictures: Iterable[Picture] | None, data_dir: str | Path
) -> tuple[Tensor, bool]:
    """Images for a comparison, and whether they are real ones."""
    if pictures is not None:
        chosen = list(islice(pictures, CHECKED))
        if not chosen:
            raise UserError("pictures= names no picture")
        return artefact.preprocess(chosen), True
    if not has_own_data(artefact):
        return random_input(32, artefact.input_size), False
    settings = own_settings(artefact, "give pictures=FOLDER").data
    data = ready(artefact, data_for(artefact, settings, data_dir))
    found, count = [], 0
    for images, _ in batches(data, "test"):
        found.append(images)
        count += len(images)
        if count >= CHECKED:
            break
    return torch.cat(found)[:CHECKED], True


def logits(artefact: Artefact, images: Tensor) -> Tensor:
    return torch.cat([artefact.logits(part) for part in images.split(32)])


def compare(got: Tensor, want: Tensor) -> tuple[float, float]:
    """Largest difference of a logit, and agreement of the top-1 class where it is sure."""
    top = want.topk(min(2, want.shape[1])).values
    sure = top[:, 0] - top[:, -1] > SURE
    same = (got.argmax(1) == want.argmax(1))[sure]
    return float((got - want).abs().max()), float(same.float().mean()) if len(same) else 1.0


def card(artefact: Artefact, about: Description, path: Path, found: Exported, old: str) -> str:
    """A model card in Markdown.

    Args:
        artefact: the network.
        about: the description of its file.
        path: of the file.
        found: how it agrees with the network.
        old: the card so far; what it says of other files of the same network is kept.
    """
    head = f"{_network(artefact)}\n\nFiles:\n\n"
    line = f"- `{path.name}`: {found.size_bytes / 1e6:.1f} MB; {found.line().partition('; ')[2]}"
    if about.pixels:
        line += "; takes uint8 pixels"
    if made := about.quantisation:
        how = [key if value is True else f"{key} {value}" for key, value in made.items() if value]
        line += f"; int8: {', '.join(how).replace('_', ' ')}"
        if path.suffix == ".onnx":
            line += f"; on x86 without VNNI set ONNX Runtime's session option {EXACT_INT8} to 1"
    lines = [line]
    for text in old.removeprefix(head).splitlines() if old.startswith(head) else ():
        name = text.removeprefix("- `").partition("`")[0]
        if text.startswith("- `") and name != path.name and path.with_name(name).is_file():
            lines.append(text)
    use = shlex.quote(path.name)
    listed = "\n".join(sorted(lines))
    return f"{head}{listed}\n\nTry one:\n\n    dwsep predict {use} picture.jpg\n"


def _network(artefact: Artefact) -> str:
    """The part of a card that is the same for all files of a network."""
    about, record = artefact.about, artefact.about.record
    data = record.get("data")
    metrics = record.get("metrics")
    name = data.get("name") if isinstance(data, dict) else None
    accuracy = metrics.get("test/acc") if isinstance(metrics, dict) else None
    classes = ", ".join(artefact.labels[:20]) + (", ..." if about.num_classes > 20 else "")
    conv = about.network.get("conv", "depthwise_separable")
    lines = [
        f"# {about.network['name']}",
        "",
        f"An image classifier, {MADE_BY}.",
        "",
        f"- Convolutions: {conv['name'] if isinstance(conv, dict) else conv}, width "
        f"{about.network.get('width_mult', 1.0):g}",
        f"- Classes ({about.num_classes}): {classes}",
        f"- Images: {about.in_chans} x {about.image_size} x {about.image_size}, resized "
        f"({about.interpolation}, crop {about.crop_pct:g}); mean {list(about.mean)}, "
        f"std {list(about.std)}"
        + (f"; transparent parts show {about.background}" if about.background else ""),
    ]
    if isinstance(accuracy, float):
        lines.append(f"- Accuracy in PyTorch: {accuracy:.2%} on the test images of data={name}")
    if name:
        lines.append(f"- Data: {name}. Its licence also applies to what was learned from it.")
    if record.get("command"):
        lines += ["", "Trained with:", "", f"    {record['command']}"]
    return "\n".join(lines)
