"""Reading weights from files without running what they contain."""

from __future__ import annotations

import argparse
import logging
import pickle
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dwsep_zoo.errors import UserError
from dwsep_zoo.files import check_intact

log = logging.getLogger("dwsep_zoo")

SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".ckpt", ".bin", ".h5", ".keras")
WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "net"),
    *("weights", "params"),
)
"""Keys of the weights in other programs' checkpoints, averaged weights first."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What DataParallel, torch.compile and Lightning modules put before the names of a network."""
COUNTERS = ("total_ops", "total_params")  # thop's


def is_weights(path: Path) -> bool:
    """Whether a file's name is one of weights."""
    return path.name.endswith(SUFFIXES)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        UserError: if the file is missing, cut off, of an unknown kind, or would run code.
    """
    if not is_weights(path):
        raise UserError(f"{path}: unknown kind of file; weights are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix in (".h5", ".keras"):
        from dwsep_zoo.weights.keras import read_keras

        return read_keras(path)
    if path.suffix == ".safetensors":
        return tensors(_read_safetensors(path), str(path))
    return tensors(read_checkpoint(path), str(path))


def read_checkpoint(path: Path) -> Any:
    """Read a file of ``torch.save`` if it holds plain data.

    Raises:
        UserError: if the file is damaged, cut off, or holds anything but plain data.
    """
    try:
        check_intact(path)
        _check_no_program(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # about kinds of pickle that are refused anyway
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
    found = {k: v for k, v in content.items() if k.rpartition(".")[2] not in COUNTERS}
    while prefix := _common_prefix(found):
        strays = [name for name in found if not name.startswith(prefix)]
        if strays:
            log.info(
                "%s: %d tensors beside the network, such as %s, are left out",
                what,
                len(strays),
                strays[0],
            )
        found = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    return {k: _full(k, v) for k, v in found.items()}


def _full(name: str, tensor: Tensor) -> Tensor:
    """Half precision as float32, and the norms' counters as whole numbers."""
    if name.endswith("num_batches_tracked"):
        return tensor.long()
    return tensor.float() if tensor.is_floating_point() else tensor


def _common_prefix(names: Collection[str]) -> str | None:
    """A prefix of nine names in ten, as losses and metrics have names of their own."""
    for prefix in PREFIXES:
        if names and sum(name.startswith(prefix) for name in names) >= 0.9 * len(names):
            return prefix
    return None


def _harmless() -> list[Any]:
    """Kinds of Python objects that other programs keep beside weights, and that run no code."""
    makers = [value.__reduce__()[0] for value in (np.float64(0), np.zeros(1))]
    dtypes = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    return [argparse.Namespace, np.dtype, np.ndarray, *makers, *dtypes]


def _check_no_program(path: Path) -> None:
    """Raises UserError for a program of TorchScript."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise UserError(
                f"{path}: a program of TorchScript; save the state_dict of its network instead"
            )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or cut off") from error
