"""Reading weights from files without running what they contain."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dwsep_zoo.errors import UserError
from dwsep_zoo.files import check_intact

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".h5", ".keras")
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys of the weights in other programs' checkpoints, averaged weights first."""


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        UserError: if the file is missing, cut off, of an unknown kind, or would run code.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of file; weights are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix in (".h5", ".keras"):
        from dwsep_zoo.weights.keras import read_keras

        return read_keras(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return tensors(read_checkpoint(path), str(path))


def read_checkpoint(path: Path) -> Any:
    """Read a file of ``torch.save`` if it holds plain data.

    Raises:
        UserError: if the file is damaged, cut off, or holds anything but plain data.
    """
    try:
        check_intact(path)
        with warnings.catch_warnings():  # about kinds of pickle that are refused anyway
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error):
            raise UserError(f"{path}: damaged or cut off") from error
        raise UserError(
            f"{path}: holds Python objects, which could run code on loading; save the state_dict "
            "alone, or as .safetensors"
        ) from error
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path}: damaged or cut off") from error


def tensors(content: Any, what: str) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the prefixes of wrappers.

    Raises:
        UserError: if there is none.
    """
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    named = isinstance(content, Mapping) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    )
    if not content or not named:
        raise UserError(f"{what}: holds no state dict (names and tensors)")
    for prefix in ("module.", "_orig_mod."):  # DataParallel, torch.compile
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or cut off") from error
