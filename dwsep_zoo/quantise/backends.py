"""The runtimes' own int8: files made from a graph and pictures to calibrate with."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dwsep_zoo.analysis.runtimes import export_onnx, export_openvino
from dwsep_zoo.artefacts import executorch, litert
from dwsep_zoo.artefacts.formats import onnx_file, openvino_files
from dwsep_zoo.artefacts.quiet import quiet
from dwsep_zoo.errors import install_line
from dwsep_zoo.nn.int8 import LARGEST, Scheme
from dwsep_zoo.schema.artefact import Description

Program = torch.export.ExportedProgram
Make = Callable[[Program, Description, list[Tensor], Scheme], dict[str, bytes]]


@dataclass(frozen=True)
class Backend:
    """A way to make an int8 file.

    Attributes:
        packages: that it needs.
        make: the contents of the files by suffix, from a graph, its description, batches as the
            graph takes them, and the scheme of the weights.
        install: the line that installs the packages.
    """

    packages: tuple[str, ...]
    make: Make
    install: str

    def missing(self) -> str | None:
        """The line that installs what is missing."""
        return None if all(map(importlib.util.find_spec, self.packages)) else self.install


def _openvino(
    program: Program, about: Description, batches: list[Tensor], scheme: Scheme
) -> dict[str, bytes]:
    import nncf
    from nncf import AdvancedQuantizationParameters as Advanced
    from nncf.quantization.advanced_parameters import QuantizationParameters

    weights = QuantizationParameters(per_channel=scheme == "per_channel")
    with quiet():
        network = export_openvino(program)
        model = nncf.quantize(
            network,
            nncf.Dataset([batch.numpy() for batch in batches]),
            subset_size=len(batches),
            # Activations without a zero point, for which OpenVINO's kernels take longer.
            preset=nncf.QuantizationPreset.PERFORMANCE,
            target_device=nncf.TargetDevice.CPU,
            advanced_parameters=Advanced(
                disable_bias_correction=True,  # done before, for every backend alike
                weights_quantization_params=weights,
            ),
        )
    _narrow_channels(model, network)
    return openvino_files(model, about)


def _narrow_channels(model: Any, network: Any) -> None:
    """Give each channel of weights its own step.

    NNCF raises steps to a hundredth of the layer's largest one, for channels that are zero. In a
    depthwise layer that rounds channels to nothing which the next layer multiplies up again.

    Args:
        model: a quantised network of OpenVINO, which is changed.
        network: the one in float that it was made from.
    """
    from openvino import opset13 as ops

    floats = {
        node.get_friendly_name(): node.input_value(1).get_node()
        for node in network.get_ordered_ops()
        if len(node.inputs()) == 2
    }
    for node in model.get_ordered_ops():
        constant = floats.get(node.get_friendly_name())
        if constant is None or constant.get_type_name() != "Constant":
            continue
        multiply = node.input_value(1).get_node()
        if multiply.get_type_name() != "Multiply":
            continue
        convert, steps = (value.get_node() for value in multiply.input_values())
        weights, step = constant.get_data(), steps.get_data()
        across = tuple(i for i, size in enumerate(step.shape) if size != weights.shape[i])
        own = np.abs(weights).max(across, keepdims=True, initial=0.0) / LARGEST
        used = own > 0
        if step.shape != weights.shape[:1] + (1,) * (weights.ndim - 1) or not used.any():
            continue
        # NNCF may use fewer levels than there are, in a first layer.
        own = np.where(used, own * (step[used] / own[used]).min(), step).astype(step.dtype)
        levels = np.round(weights / own).clip(-LARGEST, LARGEST).astype(np.int8)
        convert.input(0).replace_source_output(ops.constant(levels).output(0))
        multiply.input(1).replace_source_output(ops.constant(own).output(0))


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
    with tempfile.TemporaryDirectory() as folder, quiet():
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


def _executorch(
    program: Program, about: Description, batches: list[Tensor], scheme: Scheme
) -> dict[str, bytes]:
    """int8 by PyTorch's own tools (PT2E), for XNNPACK."""
    with quiet():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )

        config = get_symmetric_quantization_config(is_per_channel=scheme == "per_channel")
        model = _pt2e(program, XNNPACKQuantizer().set_global(config), batches)
        made = torch.export.export(model, (batches[0],))
    return executorch.write(made, about)


def _litert(
    program: Program, about: Description, batches: list[Tensor], scheme: Scheme
) -> dict[str, bytes]:
    """int8 by the same tools, with the layout that LiteRT's converter expects."""
    with quiet():
        from litert_torch.quantize.pt2e_quantizer import (
            PT2EQuantizer,
            get_symmetric_quantization_config,
        )
        from litert_torch.quantize.quant_config import QuantConfig

        config = get_symmetric_quantization_config(is_per_channel=scheme == "per_channel")
        quantiser = PT2EQuantizer().set_global(config)
        model = _pt2e(program, quantiser, batches, fold_quantize=False)
        return litert.convert(model, batches[:1], about, quant_config=QuantConfig(quantiser))


def _pt2e(program: Program, quantiser: Any, batches: list[Tensor], **options: bool) -> Any:
    """PyTorch's own way to int8: observe, then convert."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    model = prepare_pt2e(program.module(), quantiser)
    for batch in batches:
        model(batch)
    return convert_pt2e(model, **options)


BACKENDS: dict[str, Backend] = {
    "onnx": Backend(("onnx", "onnxscript", "onnxruntime"), _onnx, install_line("runtimes")),
    "openvino": Backend(("nncf", "openvino"), _openvino, install_line("runtimes,quantise")),
    "executorch": Backend(("executorch", "torchao"), _executorch, executorch.INSTALL),
    "litert": Backend(("litert_torch", "torchao"), _litert, litert.INSTALL),
}
"""By the format of their files."""
