"""The runtimes' own int8: files made from a graph and pictures to calibrate with."""

from __future__ import annotations

import importlib.util
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dwsep_zoo.analysis.runtimes import export_onnx, export_openvino
from dwsep_zoo.artefacts.formats import onnx_file, openvino_files
from dwsep_zoo.quantise.layers import Scheme
from dwsep_zoo.schema.artefact import Description

INSTALL = 'pip install "dwsep-zoo[runtimes,quantise]"'

Program = torch.export.ExportedProgram
Make = Callable[[Program, Description, list[Tensor], Scheme], dict[str, bytes]]


@dataclass(frozen=True)
class Backend:
    """A way to make an int8 file.

    Attributes:
        packages: that it needs.
        make: the contents of the files by suffix, from a graph, its description, batches as the
            graph takes them, and the scheme of the weights.
    """

    packages: tuple[str, ...]
    make: Make

    def missing(self) -> str | None:
        """The line that installs what is missing."""
        return None if all(map(importlib.util.find_spec, self.packages)) else INSTALL


def _openvino(
    program: Program, about: Description, batches: list[Tensor], scheme: Scheme
) -> dict[str, bytes]:
    import nncf
    from nncf import AdvancedQuantizationParameters as Advanced
    from nncf.quantization.advanced_parameters import QuantizationParameters

    weights = QuantizationParameters(per_channel=scheme == "per_channel")
    with _quiet():
        model = nncf.quantize(
            export_openvino(program),
            nncf.Dataset([batch.numpy() for batch in batches]),
            subset_size=len(batches),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            advanced_parameters=Advanced(
                disable_bias_correction=True,  # done before, for every backend alike
                weights_quantization_params=weights,
            ),
        )
    return openvino_files(model, about)


def _onnx(
    program: Program, about: Description, batches: list[Tensor], scheme: Scheme
) -> dict[str, bytes]:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc] # of a library without types
        def __init__(self, name: str) -> None:
            self.items = iter([{name: batch.numpy()} for batch in batches])

        def get_next(self) -> Any:
            return next(self.items, None)

    model = onnx.load_model_from_string(export_onnx(program))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder, "model.onnx")
        quantize_static(
            model,
            path,
            Reader(model.graph.input[0].name),
            per_channel=scheme == "per_channel",
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx_file(path.read_bytes(), about)


@contextmanager
def _quiet() -> Iterator[None]:
    """The libraries narrate every step on the log and on the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


BACKENDS: dict[str, Backend] = {
    "onnx": Backend(("onnx", "onnxscript", "onnxruntime"), _onnx),
    "openvino": Backend(("nncf", "openvino"), _openvino),
}
"""By the format of their files."""
