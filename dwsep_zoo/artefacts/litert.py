"""Files of LiteRT (TensorFlow Lite), which computes on phones and microcontrollers.

Its converter needs an older PyTorch than the newest, so it may want an environment of its own.
"""

from __future__ import annotations

import io
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dwsep_zoo.analysis.runtimes import Call
from dwsep_zoo.errors import UserError, first_line
from dwsep_zoo.schema.artefact import KEY, Description, read_description

INSTALL = 'pip install "dwsep-zoo[litert]"'
MARK = b"TFL3"
"""Bytes 4 to 7 of a file."""


def write(program: torch.export.ExportedProgram, about: Description) -> dict[str, bytes]:
    """A ``.tflite`` file; its description is in a zip archive behind the graph.

    TensorFlow's metadata tools keep files that belong to a model in the same place.
    """
    with quiet():
        import litert_torch

        shapes = [node.meta["val"].shape for node in _inputs(program)]
        example = tuple(torch.zeros(shape) for shape in shapes)
        converted = litert_torch.convert(program.module(check_guards=False), example)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.tflite")
            converted.export(str(path))
            return {".tflite": described(path.read_bytes(), about)}


def described(graph: bytes, about: Description) -> bytes:
    """A file of a graph with its description."""
    file = io.BytesIO(graph)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"{KEY}.json", about.to_json())
    return file.getvalue()


def read(path: Path, threads: int) -> tuple[Description, Call, list[list[int]]]:
    """The description of a file, its call, and the sizes of its input and output."""
    content = path.read_bytes()
    if content[4:8] != MARK:
        raise UserError(f"{path}: damaged, or not a file of LiteRT")
    about = read_description(_description(content), str(path))
    with quiet():
        from ai_edge_litert.interpreter import Interpreter

        try:
            network = Interpreter(model_content=content, num_threads=threads)
            network.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            reason = first_line(error)
            raise UserError(f"{path}: LiteRT cannot run it: {reason}") from error
    ends = network.get_input_details(), network.get_output_details()
    if [len(tensors) for tensors in ends] != [1, 1]:
        raise UserError(f"{path}: has not one input and one output")
    (given,), (wanted,) = ends

    def call(x: Tensor) -> Tensor:
        network.set_tensor(given["index"], x.contiguous().numpy())
        network.invoke()
        return torch.from_numpy(network.get_tensor(wanted["index"]))  # a copy

    return about, call, [[int(size) for size in one["shape"]] for one in (given, wanted)]


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries warn of each other, and their C++ logs what it does."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _inputs(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def _description(content: bytes) -> str | None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(f"{KEY}.json").decode()
    except (zipfile.BadZipFile, KeyError, ValueError):
        return None
