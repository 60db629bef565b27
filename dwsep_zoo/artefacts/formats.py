"""Formats of artefacts: how each is recognised, opened, and written."""

from __future__ import annotations

import importlib.util
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dwsep_zoo.analysis.runtimes import (
    INSTALL,
    Call,
    export_onnx,
    export_openvino,
    onnx_call,
    openvino_call,
    openvino_core,
)
from dwsep_zoo.artefacts import executorch, litert
from dwsep_zoo.errors import UserError, first_line
from dwsep_zoo.schema.artefact import KEY, SUFFIXES, Description, read_description

LARGEST = 2 * 2**30
"""Bytes of a file that is read; the networks of this project have far less."""
FORMULA = re.compile(r"(Symbol\('[su]\d+'(, \w+=True)*\)|[su]\d+|[0-9+\-*/() ]){1,50}")
"""A size in a .pt2 file, which PyTorch evaluates as Python."""


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        suffix: of its main file.
        packages: that it needs.
        runtime: what computes it.
        open: reads ``path`` for a number of threads: description and call.
        write: the contents by suffix, from a graph and its description.
        install: the line that installs the packages.
        any_batch: whether a file can take any number of images.
    """

    suffix: str
    packages: tuple[str, ...]
    runtime: str
    open: Callable[[Path, int], tuple[Description, Call]]
    write: Callable[[torch.export.ExportedProgram, Description], dict[str, bytes]]
    install: str = INSTALL
    any_batch: bool = True

    def missing(self) -> str | None:
        """The line that installs what is missing."""
        return None if all(map(importlib.util.find_spec, self.packages)) else self.install

    def check_batch(self, name: str, batch_size: int | None) -> None:
        """Raises UserError if the format cannot take any number of images, ``None``, as asked."""
        if batch_size is None and not self.any_batch:
            raise UserError(f"{name} takes a fixed number of images; set batch_size")

    def files(self, path: Path) -> list[Path]:
        """All files of the artefact at ``path``."""
        return [path, path.with_suffix(".bin")] if self.suffix == ".xml" else [path]


def _write_onnx(program: torch.export.ExportedProgram, about: Description) -> dict[str, bytes]:
    return onnx_file(export_onnx(program), about)


def onnx_file(content: bytes, about: Description) -> dict[str, bytes]:
    """An ONNX file with its description."""
    import onnx

    model = onnx.load_model_from_string(content)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, about.to_json()
    return {".onnx": model.SerializeToString()}


def _open_onnx(path: Path, threads: int) -> tuple[Description, Call]:
    import onnx

    content = _content(path)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's, which has no public name
        raise UserError(f"{path}: damaged, or not an ONNX file") from error
    if any(t.data_location == t.EXTERNAL for t in _tensors(model.graph)):
        raise UserError(f"{path}: keeps its weights in other files; such files are not read here")
    values = {entry.key: entry.value for entry in model.metadata_props}
    about = read_description(values.get(KEY), str(path))
    sizes = [
        [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    if len(sizes) != 2:
        raise UserError(f"{path}: has not one input and one output")
    _check_sizes(path, about, *sizes)
    try:
        return about, onnx_call(content, threads)
    except Exception as error:  # of ONNX Runtime, of many kinds
        raise UserError(f"{path}: ONNX Runtime cannot run it: {first_line(error)}") from error


def _tensors(graph: Any) -> list[Any]:
    inner = [a.t for node in graph.node for a in node.attribute if a.HasField("t")]
    return [*graph.initializer, *inner]


def _write_openvino(program: torch.export.ExportedProgram, about: Description) -> dict[str, bytes]:
    return openvino_files(export_openvino(program), about)


def openvino_files(model: Any, about: Description) -> dict[str, bytes]:
    """The two files of a network of OpenVINO, with its description."""
    import tempfile

    import openvino

    model.set_rt_info(about.to_json(), [KEY])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
        return {".bin": path.with_suffix(".bin").read_bytes(), ".xml": path.read_bytes()}


def _open_openvino(path: Path, threads: int) -> tuple[Description, Call]:
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise UserError(f"{path}: its weights, {weights.name}, are not beside it")
    try:
        for file in (path, weights):
            _check_length(file)
        model = openvino_core().read_model(path, weights)
        inputs, outputs = model.inputs, model.outputs
        text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
    except RuntimeError as error:
        raise UserError(f"{path}: damaged, or not a network of OpenVINO") from error
    about = read_description(text, str(path))
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(f"{path}: has not one input and one output")
    shapes = [
        [0 if d.is_dynamic else d.get_length() for d in port.get_partial_shape()]
        for port in (inputs[0], outputs[0])
    ]
    _check_sizes(path, about, *shapes)
    try:
        return about, openvino_call(model, "bf16" if about.precision == "bf16" else "fp32", threads)
    except RuntimeError as error:
        raise UserError(f"{path}: OpenVINO cannot run it: {first_line(error)}") from error


def _write_torch(program: torch.export.ExportedProgram, about: Description) -> dict[str, bytes]:
    import io

    file = io.BytesIO()
    program.example_inputs = None  # would be stored as a pickle
    torch.export.save(program, file, extra_files={KEY: about.to_json()})
    return {".pt2": file.getvalue()}


def _open_torch(path: Path, threads: int) -> tuple[Description, Call]:
    _check_harmless(path)
    found = {KEY: ""}
    try:
        program = torch.export.load(path, extra_files=found)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path}: PyTorch cannot load it: {first_line(error)}") from error
    about = read_description(found[KEY], str(path))
    signature = {
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind.name == "USER_INPUT"
    }
    shapes = [
        [d if isinstance(d, int) else 0 for d in node.meta["val"].shape]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in signature
    ]
    if len(shapes) != 1:
        raise UserError(f"{path}: has not one input")
    _check_sizes(path, about, shapes[0], None)
    return about, program.module()


def _open_executorch(path: Path, threads: int) -> tuple[Description, Call]:
    _check_length(path)
    about, call, sizes = executorch.read(path, threads)
    _check_sizes(path, about, *sizes)
    return about, call


def _open_litert(path: Path, threads: int) -> tuple[Description, Call]:
    _check_length(path)
    about, call, sizes = litert.read(path, threads)
    _check_sizes(path, about, *sizes)
    return about, call


def _check_harmless(path: Path) -> None:
    """Raises UserError for a .pt2 file whose loading could run code.

    PyTorch unpickles what an archive calls a pickle, and evaluates sizes as Python.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise UserError(f"{path}: larger than {LARGEST:,} bytes")
            names = [entry.filename for entry in archive.infolist() if entry.file_size]
            texts = [archive.read(name).decode() for name in names if name.endswith(".json")]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged, or not a file of torch.export") from error
    pickled = [n for n in names if "custom_obj" in n or "opaque_obj" in n]
    pickled += [n for n in names if "sample_inputs" in n]
    for text in texts:
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: damaged: {error}") from error
        pickled += ["weights"] * any(_found(values, "use_pickle", lambda v: bool(v)))
        if any(_found(values, "expr_str", lambda v: not FORMULA.fullmatch(str(v)))):
            raise UserError(f"{path}: has sizes that are no formula; it is not loaded")
    if pickled:
        raise UserError(f"{path}: holds Python objects, which could run code on loading")


def _found(values: Any, key: str, test: Callable[[Any], bool]) -> list[bool]:
    """The results of a test on every value of a key, at any depth."""
    if isinstance(values, dict):
        own = [test(values[key])] if key in values else []
        return own + [one for value in values.values() for one in _found(value, key, test)]
    if isinstance(values, list):
        return [one for value in values for one in _found(value, key, test)]
    return []


def _content(path: Path) -> bytes:
    _check_length(path)
    return path.read_bytes()


def _check_length(path: Path) -> None:
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: larger than {LARGEST:,} bytes")


def _check_sizes(path: Path, about: Description, x: list[int], y: list[int] | None) -> None:
    """Raises UserError if a graph is not for the images and classes that its file describes."""
    side, want = about.image_size, about.batch_size or 0
    if x != [want, about.in_chans, side, side]:
        shown = " x ".join(str(n or "N") for n in x)
        raise UserError(f"{path}: its description is not of its network, which takes {shown}")
    if y is not None and y[1:] != [about.num_classes]:
        raise UserError(
            f"{path}: its description has {about.num_classes} classes, its network {y[-1]}"
        )


FORMATS: dict[str, Format] = {
    "onnx": Format(
        *(SUFFIXES["onnx"], ("onnx", "onnxscript", "onnxruntime"), "onnxruntime"),
        *(_open_onnx, _write_onnx),
    ),
    "openvino": Format(
        SUFFIXES["openvino"], ("openvino",), "openvino", _open_openvino, _write_openvino
    ),
    "torch_export": Format(SUFFIXES["torch_export"], (), "torch.export", _open_torch, _write_torch),
    "executorch": Format(
        *(SUFFIXES["executorch"], ("executorch",), "executorch"),
        *(_open_executorch, executorch.write, executorch.INSTALL),
        any_batch=False,
    ),
    "litert": Format(
        *(SUFFIXES["litert"], ("litert_torch", "ai_edge_litert"), "litert"),
        *(_open_litert, litert.write, litert.INSTALL),
        any_batch=False,
    ),
}
