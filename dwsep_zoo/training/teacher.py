"""A trained network that teaches another one: ``distill.teacher=``."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dwsep_zoo.analysis.count import Count, count
from dwsep_zoo.analysis.memory import inference_memory
from dwsep_zoo.artefacts import Artefact, open_artefact
from dwsep_zoo.artefacts.formats import FORMATS
from dwsep_zoo.artefacts.timm_network import PREFIX, check_timm_name, open_timm
from dwsep_zoo.data import ImageData
from dwsep_zoo.errors import UserError
from dwsep_zoo.models import ConvNet
from dwsep_zoo.schema.parse import parse
from dwsep_zoo.schema.record import RunRecord
from dwsep_zoo.schema.settings import DistillSettings, Settings
from dwsep_zoo.schema.teacher import TeacherRecord
from dwsep_zoo.training.distill import DIVERGENCES, feature_distance
from dwsep_zoo.training.progressive import resize
from dwsep_zoo.weights.classes import outputs_of
from dwsep_zoo.weights.sources import find

log = logging.getLogger("dwsep_zoo")

KEY = "distill.teacher"


@dataclass(frozen=True)
class Outputs:
    """Of a network for a batch.

    Attributes:
        logits: ``(N, C)`` float32, in the order of the data's classes.
        maps: feature maps, if they are compared.
    """

    logits: Tensor
    maps: tuple[Tensor, ...] = ()


class Teacher:
    """A trained network, called with the batches of another one's training.

    It is no module, so that neither checkpoints nor optimizers nor averages hold it; copies of the
    training's module share it.

    Args:
        artefact: the network, in any format; only those in PyTorch compute on the device.
        data: of the training, prepared; its classes are found among the teacher's by name.
        settings: how it teaches.

    Raises:
        UserError: for a teacher that lacks a class, or takes images with other channels.
    """

    def __init__(self, artefact: Artefact, data: ImageData, settings: DistillSettings):
        about, what = artefact.about, artefact.what
        if about.in_chans != data.in_chans:
            raise UserError(
                f"{KEY}: {what}: takes images with {about.in_chans} channels; the data have "
                f"{data.in_chans}"
            )
        self.artefact = artefact
        self.settings = settings
        self.network = artefact.call if isinstance(artefact.call, nn.Module) else None
        self.cost: Count | None = None
        if self.network is not None:
            self.cost = _cost(self.network, artefact.input_size)
            self.network.requires_grad_(False).eval()
        order = outputs_of(data.class_names, artefact.class_names, f"{KEY}: {what}")
        self.reordered = order != list(range(about.num_classes))
        self.order = torch.tensor(order)
        shape = (1, data.in_chans, 1, 1)
        mean, std = (torch.tensor(values).view(shape) for values in (data.mean, data.std))
        own_mean, own_std = (torch.tensor(v).view(shape) for v in (about.mean, about.std))
        self.renormalised = not (torch.equal(mean, own_mean) and torch.equal(std, own_std))
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    def __deepcopy__(self, memo: object) -> Teacher:
        return self

    @property
    def compares_maps(self) -> bool:
        return self.settings.features > 0

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move it to where the training is."""
        if self.network is not None:
            self.network.to(device, dtype)
        self.order = self.order.to(device)
        self.scale, self.shift = (x.to(device, dtype) for x in (self.scale, self.shift))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """The outputs for ``(N, C, H, W)`` images as the training has them, at their full size.

        The teacher sees the same crops and colours, resized and normalised as its own images.
        """
        images = resize(images.to(self.scale.dtype), self.artefact.about.image_size)
        if self.renormalised:
            images = images * self.scale + self.shift
        maps: tuple[Tensor, ...] = ()
        if self.network is None:  # a file, computed on the CPU without gradients
            logits = self.artefact.logits(images.cpu()).clone().to(images.device)
        elif self.compares_maps:
            assert isinstance(self.network, ConvNet)
            logits, maps = with_maps(self.network, images)
        else:
            logits = self.network(images)
        logits = logits.float()
        return Outputs(logits.index_select(1, self.order) if self.reordered else logits, maps)

    def memory(self, images: int) -> int:
        """Bytes that a batch of images takes in PyTorch; a file computes elsewhere, 0."""
        if self.network is None:
            return 0
        return inference_memory(self.network, self.artefact.input_size, batch_size=images)

    def blend(self, loss: Tensor, student: Outputs, taught: Outputs) -> Tensor:
        """The loss of a step.

        Args:
            loss: by the labels.
            student: outputs of the network that is trained.
            taught: those of the teacher.
        """
        settings = self.settings
        apart = DIVERGENCES[settings.kind](student.logits, taught.logits, settings.temperature)
        loss = (1 - settings.weight) * loss + settings.weight * apart
        if self.compares_maps:
            loss = loss + settings.features * feature_distance(student.maps, taught.maps)
        return loss

    def record(self, data: ImageData) -> TeacherRecord:
        """What is recorded of it with a network that it taught on these data."""
        about = self.artefact.about
        trained_on = about.record.get("data")
        metrics = about.record.get("metrics")
        same = isinstance(trained_on, dict) and trained_on.get("fingerprint") == data.fingerprint
        cost = {"params": about.record.get("params"), "macs": about.record.get("macs")}
        if self.cost:
            cost = {"params": self.cost.params, "macs": self.cost.macs}
        values = {
            "name": _name(self.artefact),
            "source": self.artefact.what,
            "run": about.record.get("name"),
            "fingerprint": fingerprint(self.artefact),
            "test_acc": metrics.get("test/acc") if same and isinstance(metrics, dict) else None,
            "image_size": about.image_size,
            **cost,
            **self.settings.model_dump(exclude={"teacher"}),
        }
        return parse(TeacherRecord, values)

    def say(self, record: TeacherRecord) -> None:
        """Log who teaches and how."""
        outputs, used = self.artefact.about.num_classes, len(self.order)
        parts = [
            record.macs and f"{record.macs / 1e6:,.2f} M MACs at {record.image_size} pixels",
            record.test_acc is not None and f"test accuracy {100 * record.test_acc:.2f} %",
            used < outputs and f"{used} of its {outputs} classes",
            f"{record.kind}, weight {record.weight:g}, temperature {record.temperature:g}",
            record.features and f"features {record.features:g}",
        ]
        log.info("teacher %s: %s", record.name, ", ".join(part for part in parts if part))


def with_maps(network: ConvNet, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits, and the last feature map of each resolution."""
    features, maps = network.forward_intermediates(images)
    return network.forward_head(features), tuple(maps)


def check_teacher(settings: Settings) -> None:
    """Open a teacher that is on this machine, and look for another one's name.

    Raises:
        UserError: for one that does not exist or is damaged, and for features that cannot be
            compared; before anything is downloaded.
    """
    source = settings.distill.teacher
    if not source or not settings.train:
        return
    if settings.distill.features:
        recipe = settings.recipe
        for key, given in {
            "recipe.initial_size": recipe.initial_size,
            "recipe.simulated_int8": recipe.simulated_int8,
            "trainer.compile": settings.trainer.compile is True or None,
        }.items():
            if given is not None:
                raise UserError(
                    f"distill.features={settings.distill.features:g} compares feature maps of full "
                    f"size as they are computed without {key}={str(given).lower()}; leave it out"
                )
    path = Path(source).expanduser()
    try:
        if source.startswith(PREFIX):
            check_timm_name(source)
        elif path.exists() or any(path.suffix == kind.suffix for kind in FORMATS.values()):
            open_artefact(source)
        else:
            find(source)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from error


def open_teacher(settings: DistillSettings, data: ImageData, student: ConvNet) -> Teacher | None:
    """The teacher of a training, checked against its data and its network.

    Raises:
        UserError: for a teacher that cannot be opened, that lacks a class of the data, or whose
            feature maps have other shapes than the network's, where they are compared.
    """
    source = settings.teacher
    if not source:
        return None
    try:
        artefact = open_timm(source) if source.startswith(PREFIX) else open_artefact(source)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from error
    teacher = Teacher(artefact, data, settings)
    if settings.features:
        _check_maps(teacher, data, student)
    return teacher


def check_same_teacher(earlier: RunRecord | None, now: TeacherRecord | None) -> None:
    """Raises UserError if a run that goes on began with another teacher."""
    before = earlier.teacher if earlier else None
    if before and now and before.fingerprint != now.fingerprint:
        raise UserError(
            f"{KEY}: {now.source} is not the teacher with which this run began, which was "
            f"{before.name} of {before.source} (its weights have changed); set {KEY} to that one"
        )


def fingerprint(artefact: Artefact) -> str:
    """A hash of the weights of a network in PyTorch, wherever they lie, or of a file's bytes."""
    digest = hashlib.sha256()
    if isinstance(artefact.call, nn.Module):
        for name, tensor in artefact.call.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    else:
        for file in FORMATS[artefact.format].files(Path(artefact.what)):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _name(artefact: Artefact) -> str:
    """Of its network, as rows of a table are named."""
    network = artefact.about.network
    if not network:
        return artefact.what
    conv, width = network.get("conv", "depthwise_separable"), network.get("width_mult") or 1.0
    parts = [
        network["name"],
        conv["name"] if isinstance(conv, dict) else conv,
        width != 1 and f"width {width:g}",
        artefact.model is None and f"as {artefact.format} {artefact.about.precision}",
    ]
    return " ".join(str(part) for part in parts if part)


def _cost(network: nn.Module, input_size: tuple[int, int, int]) -> Count | None:
    """Parameters and multiply-adds; ``None`` where a network of timm takes no empty batch."""
    try:
        return count(network, input_size)
    except Exception:
        if isinstance(network, ConvNet):
            raise
        return None


def _check_maps(teacher: Teacher, data: ImageData, student: ConvNet) -> None:
    """Raises UserError if the feature maps of teacher and network have other shapes."""

    def shapes(network: ConvNet, side: int) -> list[str]:
        info = network.feature_info
        return [f"{one['num_chs']} x {side / one['reduction']:g}" for one in info]

    what = f"distill.features: the teacher {_name(teacher.artefact)}"
    if not isinstance(teacher.network, ConvNet):
        raise UserError(f"{what} is no network of this zoo in PyTorch; set distill.features=0")
    theirs = shapes(teacher.network, teacher.artefact.about.image_size)
    own = shapes(student, data.image_size)
    if theirs != own:
        raise UserError(
            f"{what} has feature maps of {', '.join(theirs)} pixels, the network of "
            f"{', '.join(own)}; they fit where model, width, output stride and image size are equal"
        )
