"""``open_artefact``: anything that holds a trained network, as one kind of object."""

from __future__ import annotations

from pathlib import Path

import torch

from dwsep_zoo.analysis.memory import state_dict_bytes
from dwsep_zoo.artefacts.artefact import Artefact
from dwsep_zoo.artefacts.formats import FORMATS
from dwsep_zoo.errors import UserError
from dwsep_zoo.models import ConvNet
from dwsep_zoo.schema.artefact import Description, check_description
from dwsep_zoo.schema.part import Json
from dwsep_zoo.schema.record import FILE_NAME, RunRecord, read_record
from dwsep_zoo.weights import load

RECORDED = (
    *("model", "conv", "conv_options", "width_mult", "seed", "tags", "config", "output_stride"),
    *("network", "match", "data", "input_size", "params", "macs", "search", "epochs"),
    *("best_epoch", "precision", "name", "metrics", "started", "command", "schema", "teacher"),
)
"""Keys of a run's record that are about its network and how it was trained."""


def open_artefact(source: str | Path, *, threads: int | None = None) -> Artefact:
    """Open a trained network.

    Args:
        source: the folder of a run, a checkpoint, a folder of saved weights, the name of published
            weights (``mobilenet_v2.IMAGENET1K_V1``, a timm or hub id, a package), or an exported
            file: ``.onnx``, OpenVINO's ``.xml``, ``.pt2``, ``.pte``, ``.tflite``.
        threads: CPU threads; ``None``: torch's setting.

    Raises:
        UserError: in one line: it does not exist, is damaged, was not made by this project, could
            run code on loading, or needs a package, with the line that installs it.
    """
    threads = threads or torch.get_num_threads()
    path = Path(source).expanduser()
    for name, kind in FORMATS.items():
        if path.suffix != kind.suffix:
            continue
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if line := kind.missing():
            raise UserError(f"{path}: needs {', '.join(kind.packages)}; install them with: {line}")
        about, call = kind.open(path, threads)
        size = sum(file.stat().st_size for file in kind.files(path))
        return Artefact(str(path), name, kind.runtime, about, size, call, threads)
    model = load(source).to(memory_format=torch.channels_last)
    about = describe(model, _record(path))
    size = state_dict_bytes(model)
    return Artefact(str(source), "pytorch", "eager", about, size, model, threads, model)


def describe(model: ConvNet, record: RunRecord | None = None) -> Description:
    """The description of a network of this zoo, and of the run that trained it."""
    cfg = model.default_cfg
    about = Description(
        network={**model.build_args, "num_classes": model.num_classes},
        num_classes=model.num_classes,
        class_names=tuple(model.class_names),
        in_chans=model.in_chans,
        image_size=cfg["input_size"][-1],
        mean=tuple(map(float, cfg["mean"])),
        std=tuple(map(float, cfg["std"])),
        interpolation=cfg["interpolation"],
        crop_pct=float(cfg["crop_pct"]),
        background=cfg.get("background"),
        record=_kept(record) if record else {},
    )
    check_description(about, "the network")
    return about


def _kept(record: RunRecord) -> Json:
    values = {key: value for key, value in record.plain().items() if key in RECORDED}
    data = values.get("data")
    if isinstance(data, dict):
        values["data"] = {k: v for k, v in data.items() if k not in ("subset", "class_names")}
    return values


def _record(path: Path) -> RunRecord | None:
    """The record of the run that a folder or checkpoint is of."""
    folders = [path] if path.is_dir() else [path.parent.parent] * (path.suffix == ".ckpt")
    for folder in folders:
        if (folder / FILE_NAME).is_file():
            try:
                return read_record(folder / FILE_NAME)
            except UserError as error:
                raise UserError(f"{folder / FILE_NAME}: {error}") from None
    return None
