"""Any trained network of timm, to be called; it is no network of this zoo."""

from __future__ import annotations

import torch

from dwsep_zoo.artefacts.artefact import Artefact
from dwsep_zoo.errors import UserError, first_line, nearest
from dwsep_zoo.schema.artefact import Description, check_description
from dwsep_zoo.weights.sources import download

PREFIX = "timm:"
LOCAL = "local-dir:"


def check_timm_name(what: str) -> None:
    """Raises UserError if timm has no such network; nothing is downloaded.

    Args:
        what: ``timm:NAME``, where NAME may be ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``.
    """
    import timm

    name = what.removeprefix(PREFIX)
    if ":" in name:
        return
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models())
        hint = f"; did you mean {PREFIX}{near}?" if near else ""
        raise UserError(f"{what}: timm has no network {architecture!r}{hint}")
    trained = timm.list_pretrained(f"{architecture}*")
    if name not in trained and not any(one.startswith(f"{name}.") for one in trained):
        own = [one for one in trained if one.partition(".")[0] == architecture]
        raise UserError(
            f"{what}: timm has no such weights; {architecture} has {', '.join(own) or 'none'}"
        )


def open_timm(what: str) -> Artefact:
    """Open a trained network of timm by ``timm:NAME``; it is downloaded once.

    Raises:
        UserError: in one line: it does not exist, cannot be downloaded, or is damaged.
    """
    import timm

    check_timm_name(what)
    name = what.removeprefix(PREFIX)
    known = None if ":" in name else timm.models.get_pretrained_cfg(name)
    repo = known.hf_hub_id if known else None if name.startswith(LOCAL) else name
    if repo:  # timm's own client tries for minutes where there is no network
        name = f"{LOCAL}{download(repo)}"
    try:
        model = timm.create_model(name, pretrained=True).eval()
    except Exception as error:  # of timm, the hub's client and the file system
        raise UserError(f"{what}: cannot be loaded: {first_line(error)}") from error
    cfg = {**vars(model)["pretrained_cfg"], **timm.data.resolve_model_data_config(model)}
    about = Description(
        network={},
        num_classes=cfg["num_classes"],
        class_names=tuple(cfg.get("label_names") or ()),
        in_chans=cfg["input_size"][0],
        image_size=cfg["input_size"][-1],
        mean=tuple(map(float, cfg["mean"])),
        std=tuple(map(float, cfg["std"])),
        interpolation=cfg["interpolation"],
        crop_pct=float(cfg["crop_pct"]),
    )
    check_description(about, what)
    model.to(memory_format=torch.channels_last)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    return Artefact(what, "timm", "eager", about, size, model, torch.get_num_threads())
