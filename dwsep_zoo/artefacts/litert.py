"""Files of LiteRT (TensorFlow Lite), which computes on phones and microcontrollers.

Its converter needs an older PyTorch than the newest, so it may want an environment of its own.
"""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dwsep_zoo.analysis.runtimes import Call
from dwsep_zoo.artefacts.quiet import quiet
from dwsep_zoo.errors import UserError, first_line, install_line
from dwsep_zoo.schema.artefact import KEY, Description, read_description

INSTALL = install_line("litert")
MARK = b"TFL3"
"""Bytes 4 to 7 of a file."""


def write(program: torch.export.ExportedProgram, about: Description) -> dict[str, bytes]:
    """A ``.tflite`` file."""
    names = set(program.graph_signature.user_inputs)
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in names]
    example = [torch.zeros(one.shape, dtype=one.dtype) for one in inputs]
    return convert(program.module(check_guards=False), example, about)


def convert(
    model: nn.Module, example: Sequence[Tensor], about: Description, **options: object
) -> dict[str, bytes]:
    """A ``.tflite`` file; its description is in a zip archive behind the graph.

    TensorFlow's metadata tools keep files that belong to a model in the same place.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when the converter is loaded
    with quiet(), tempfile.TemporaryDirectory() as folder:
        import litert_torch

        path = Path(folder, "model.tflite")
        litert_torch.convert(model, tuple(example), **options).export(str(path))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{KEY}.json", about.to_json())
        return {".tflite": path.read_bytes()}


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
        # An int8 network takes and gives levels.
        if given["dtype"] == np.int8:
            scale, zero = given["quantization"]
            x = (x / scale + zero).round().clamp(-128, 127).to(torch.int8)
        network.set_tensor(given["index"], x.contiguous().numpy())
        network.invoke()
        y = torch.from_numpy(network.get_tensor(wanted["index"]))  # a copy
        if wanted["dtype"] == np.int8:
            scale, zero = wanted["quantization"]
            y = (y.float() - zero) * scale
        return y

    return about, call, [[int(size) for size in one["shape"]] for one in (given, wanted)]


def _description(content: bytes) -> str | None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(f"{KEY}.json").decode()
    except (zipfile.BadZipFile, KeyError, ValueError):
        return None
