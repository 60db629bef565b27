"""The zoo for timm's tools and on the Hugging Face hub.

Importing this module registers every model with timm, as ``dwsep_<name>``::

    import timm
    import dwsep_zoo.hub

    timm.create_model("dwsep_xception", num_classes=10, output_stride=8, features_only=True)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timm.models import PretrainedCfg, filter_pretrained_cfg, is_model, register_model
from timm.models._features import FeatureGetterNet  # timm exports its siblings, but not this one
from torch import nn

from dwsep_zoo.errors import UserError
from dwsep_zoo.files import write_together
from dwsep_zoo.models import ConvNet, build_model, create_architecture, list_models
from dwsep_zoo.models.convnet import default_cfg
from dwsep_zoo.weights import load
from dwsep_zoo.weights.sources import download
from dwsep_zoo.zoo import create_model

__all__ = ["from_pretrained", "push_to_hub", "register_timm", "save_pretrained"]

PREFIX = "dwsep_"

default_cfgs = {f"{PREFIX}{name}": default_cfg(create_architecture(name)) for name in list_models()}
"""timm reads this to describe a model that has not been built."""


def register_timm() -> None:
    """Put every model into timm's registry; importing this module does it."""
    for name in list_models():
        entry = _entry(name)
        if not is_model(entry.__name__):
            globals()[entry.__name__] = register_model(entry)


def _entry(name: str) -> Callable[..., nn.Module]:
    """The function that ``timm.create_model`` calls."""

    def entry(
        pretrained: str | bool = False,
        pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        pretrained_model_args: dict[str, Any] | None = None,  # those of timm are in options, too
        cache_dir: str | Path | None = None,
        features_only: bool = False,
        out_indices: int | Sequence[int] | None = None,
        global_pool: str | None = None,
        **options: Any,
    ) -> nn.Module:
        given: dict[str, Any] = {}
        if isinstance(pretrained_cfg, PretrainedCfg):
            given = pretrained_cfg.to_dict()
        elif isinstance(pretrained_cfg, dict):
            given = pretrained_cfg
        elif pretrained_cfg and pretrained:
            pretrained = pretrained_cfg  # a tag, as in dwsep_mobilenet_v2.IMAGENET1K_V1
        overlay = pretrained_cfg_overlay or {}
        cfg = {**given, **overlay}
        weights: str | bool | Path = pretrained
        if pretrained and cfg.get("hf_hub_id"):
            weights = download(cfg["hf_hub_id"], cache_dir)
        elif pretrained and cfg.get("file"):
            weights = cfg["file"]
        model = create_model(name, pretrained=weights, **options)
        if cfg.get("hf_hub_id") or cfg.get("file"):
            _describe(model, cfg)
        _describe(model, {**overlay, "architecture": entry.__name__})
        if global_pool not in (None, "avg"):
            model.reset_classifier(model.num_classes, global_pool)
        if not features_only:
            return model
        if out_indices is None:
            out_indices = len(model.feature_info)
        elif not isinstance(out_indices, int):
            out_indices = tuple(out_indices)
        features: Any = FeatureGetterNet(model, out_indices)
        features.pretrained_cfg = features.default_cfg = model.pretrained_cfg
        return features

    entry.__name__ = entry.__qualname__ = f"{PREFIX}{name}"
    entry.__doc__ = f"``{name}`` of dwsep_zoo, with the options of ``dwsep_zoo.create_model``."
    return entry


def _describe(model: ConvNet, cfg: dict[str, Any]) -> None:
    """Store a description of the images and classes, except for what the network has changed."""
    differs: tuple[str, ...] = ()
    if cfg.get("input_size", (model.in_chans,))[0] != model.in_chans:
        differs += ("input_size", "mean", "std")
    if cfg.get("num_classes", model.num_classes) != model.num_classes:
        differs += ("num_classes", "label_names", "label_descriptions")
    cfg = {k: tuple(v) if isinstance(v, list) else v for k, v in cfg.items() if k not in differs}
    model.pretrained_cfg = {**model.pretrained_cfg, **cfg}


def save_pretrained(
    model: ConvNet, folder: str | Path, class_names: Sequence[str] | None = None
) -> None:
    """Write ``config.json`` and ``model.safetensors``, as timm does for the Hugging Face hub.

    Args:
        model: a network of :func:`dwsep_zoo.create_model`.
        folder: created if necessary.
        class_names: names of the classifier's outputs; ``None``: the model's own, if it has them.

    Raises:
        UserError: for a network that cannot be built again from its arguments, or a wrong number
            of class names.
    """
    from safetensors.torch import save

    args = {**_build_args(model), "num_classes": model.num_classes}
    names = list(model.class_names if class_names is None else class_names)
    if names and len(names) != model.num_classes:
        raise UserError(f"class_names: {len(names)} names for {model.num_classes} classes")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        again = build_model(**args).state_dict()
    for name in [*state, *again]:
        if name not in state or name not in again or state[name].shape != again[name].shape:
            raise UserError(f"{name}: was changed after the network was built; it cannot be saved")
    architecture = PREFIX + args.pop("name")
    cfg = filter_pretrained_cfg(model.pretrained_cfg, remove_source=True)
    background = cfg.pop("background", None)  # timm's own description has no such key
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        **({"label_names": names} if names else {}),
        "model_args": {key: value for key, value in args.items() if value is not None},
        **({"background": background} if background else {}),
        "pretrained_cfg": {**cfg, "architecture": architecture},
    }
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[Path, str | bytes] = {
        folder / "config.json": json.dumps(config, indent=2) + "\n",
        folder / "model.safetensors": save(state, metadata={"format": "pt"}),
    }
    write_together(contents)


def from_pretrained(source: str | Path, cache_dir: str | Path | None = None) -> ConvNet:
    """Build and load a network that :func:`save_pretrained` or :func:`push_to_hub` wrote.

    Args:
        source: a folder, or ``owner/name`` or ``owner/name@revision`` on the hub.
        cache_dir: cache of downloads; ``None``: the hub's usual place.

    Returns:
        The network in evaluation mode, with ``class_names`` and, in ``pretrained_cfg``, the
        preprocessing of its images.

    Raises:
        UserError: if it does not exist or holds another network.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = download(str(source), cache_dir)
    try:
        cfg = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: has no config.json that save_pretrained wrote") from error
    model = load(folder)
    _describe(model, cfg)
    return model


def push_to_hub(
    model: ConvNet,
    repo_id: str,
    class_names: Sequence[str] | None = None,
    *,
    private: bool = False,
    commit_message: str = "Add model",
    token: str | None = None,
) -> str:
    """Upload the files of :func:`save_pretrained`, and a model card if there is none.

    Args:
        model: a network of :func:`dwsep_zoo.create_model`.
        repo_id: ``owner/name``; created if necessary.
        class_names: names of the classifier's outputs; ``None``: the model's own, if it has them.
        private: make a new repository private.
        commit_message: message of the upload.
        token: access token; ``None``: that of ``hf auth login``.

    Returns:
        The address of the commit.

    Raises:
        UserError: as :func:`save_pretrained`, before anything is uploaded.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, class_names)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if not api.file_exists(repo_id, "README.md"):
            card = CARD.format(repo_id=repo_id, name=model.build_args["name"])
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=commit_message
        )
    return str(commit.commit_url)


CARD = """\
---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, dwsep_zoo]
---
# {repo_id}

`{name}` of dwsep_zoo.

    import timm
    import dwsep_zoo.hub

    model = timm.create_model("hf-hub:{repo_id}", pretrained=True)
"""


def _build_args(model: nn.Module) -> dict[str, Any]:
    args: dict[str, Any] | None = getattr(model, "build_args", None)
    if not args:
        raise UserError(f"{type(model).__name__}: was not built by dwsep_zoo.create_model")
    return args


register_timm()
