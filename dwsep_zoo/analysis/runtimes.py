"""Runtimes of a network: PyTorch itself, its compiler, and those that people ship."""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dwsep_zoo.errors import UserError, choose, install_line
from dwsep_zoo.nn.fuse import fold_norms

if TYPE_CHECKING:
    import openvino

INSTALL = install_line("runtimes")
EXACT_INT8 = "session.x64quantprecision"
"""ONNX Runtime's session option for exact sums of int8 products on x86 without VNNI."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEMORY_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}
OWN_FORMAT = "own layout"  # of a runtime that lays tensors out as it likes

Call = Callable[[Tensor], Tensor]
"""``(N, C, H, W)`` -> ``(N, num_classes)``, of the size that it was prepared for."""
Inference = Callable[[], Tensor]
"""Runs one batch and returns the outputs."""


@dataclass(frozen=True)
class Runtime:
    """A way to run networks.

    Attributes:
        prepare: turns a network in eval mode, an input ``(N, C, H, W)``, the precision and the
            number of threads into a call. It may change the network.
        missing: gives the line that installs the runtime; ``None`` if it can be used here.
        own_format: whether it chooses the layout of tensors itself.
    """

    prepare: Callable[[nn.Module, Tensor, str, int], Call]
    missing: Callable[[], str | None] = lambda: None
    precisions: tuple[str, ...] = ("fp32", "bf16")
    devices: tuple[str, ...] = ("cpu", "cuda")
    own_format: bool = False


def available_runtimes() -> dict[str, str | None]:
    """The line that installs each runtime; ``None`` for those that can be used here."""
    return {name: runtime.missing() for name, runtime in RUNTIMES.items()}


@dataclass(frozen=True)
class Workload:
    """A batch and what computes it: the conditions of one latency measurement.

    Attributes:
        runtime: one of ``RUNTIMES``.
        precision: ``fp32`` (on a GPU as PyTorch has it: convolutions may use TF32), or ``bf16``
            for weights and activations alike.
        batch_size: images of a batch.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; ``None``: torch's setting.
        memory_format: ``channels_last`` or ``contiguous``, where the runtime leaves the choice.
    """

    runtime: str = "eager"
    precision: str = "fp32"
    batch_size: int = 1
    device: str | torch.device = "cpu"
    threads: int | None = None
    memory_format: str = "channels_last"

    def __str__(self) -> str:
        where = "" if self.device == "cpu" else f" on {self.device}"
        return f"{self.runtime} {self.precision}, batch {self.batch_size}{where}"

    def check(self) -> None:
        """Raises UserError for conditions that cannot be measured here, before any work is done."""
        name, precision = self.runtime, self.precision
        runtime = RUNTIMES[choose(name, RUNTIMES, "runtime")]
        choose(precision, DTYPES, "precision")
        choose(self.memory_format, MEMORY_FORMATS, "memory_format")
        kind = choose(str(self.device).split(":")[0], ("cpu", "cuda"), "device")
        for key, value in {"batch_size": self.batch_size, "threads": self.threads}.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UserError(f"{key} must be at least 1; got {value!r}")
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device={self.device}: PyTorch finds no CUDA device here")
        if line := runtime.missing():
            raise UserError(f"runtime {name!r} is not installed; install it with: {line}")
        if kind not in runtime.devices:
            raise UserError(
                f"runtime {name!r} is measured on {runtime.devices[0]} only; got {kind}"
            )
        if precision not in runtime.precisions:
            raise UserError(
                f"runtime {name!r} computes in {', '.join(runtime.precisions)}; got {precision}"
            )
        if name == "openvino" and precision == "bf16" and not _openvino_has_bf16():
            raise UserError("runtime 'openvino' computes in fp32 on this processor; got bf16")

    def tensors(self) -> tuple[torch.dtype, torch.memory_format]:
        """Type and layout of the tensors that the runtime is given."""
        # A runtime with a layout of its own has a precision option of its own, too.
        if RUNTIMES[self.runtime].own_format:
            return torch.float32, torch.contiguous_format
        return DTYPES[self.precision], MEMORY_FORMATS[self.memory_format]


def prepare(model: nn.Module, input_size: Sequence[int], workload: Workload) -> Inference:
    """A call that runs a copy of ``model`` once, on random ``(N, C, H, W)``.

    The call is to be made in torch's inference mode. Torch has its own setting of threads.
    """
    x = as_input(random_input(workload.batch_size, input_size), workload)
    call = prepare_for(model, x, workload)
    return lambda: call(x)


def prepare_for(model: nn.Module, x: Tensor, workload: Workload) -> Call:
    """A call that runs a copy of ``model`` on tensors like ``x``, in torch's inference mode.

    ``x`` and the call's input are those of :func:`as_input`.
    """
    threads = workload.threads or torch.get_num_threads()
    network = copied(model, workload)
    return RUNTIMES[workload.runtime].prepare(network, x, workload.precision, threads)


def copied(model: nn.Module, workload: Workload) -> nn.Module:
    """A copy in eval mode, with the device, type and layout of a workload."""
    dtype, layout = workload.tensors()
    network = copy.deepcopy(model).eval()
    return network.to(device=workload.device, dtype=dtype).to(memory_format=layout)


def as_input(x: Tensor, workload: Workload) -> Tensor:
    """Images with the device, type and layout of a workload."""
    dtype, layout = workload.tensors()
    return x.to(device=workload.device, dtype=dtype, memory_format=layout)


def random_input(batch_size: int, input_size: Sequence[int]) -> Tensor:
    """The same ``(N, C, H, W)`` at every call, without using the global random numbers."""
    return torch.randn(batch_size, *input_size, generator=torch.Generator().manual_seed(0))


def _eager(model: nn.Module, x: Tensor, precision: str, threads: int) -> Call:
    return model


def _fused(model: nn.Module, x: Tensor, precision: str, threads: int) -> Call:
    fold_norms(model, x.shape[1:])
    return model


def _compiled(model: nn.Module, x: Tensor, precision: str, threads: int, **options: Any) -> Call:
    # All networks share the code of one forward, and PyTorch keeps 8 compilations of a piece of
    # code by default, a limit without a public name. fullgraph: beyond it compilation fails.
    compiled = torch.compile(model, fullgraph=True, dynamic=False, options=options)
    with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=1000):
        compiled(x)
    return compiled


def _frozen(model: nn.Module, x: Tensor, precision: str, threads: int) -> Call:
    """Weights as constants: norms are folded and weights are laid out once, for oneDNN."""
    return _compiled(model, x, precision, threads, freezing=True)


def _onnxruntime(model: nn.Module, x: Tensor, precision: str, threads: int) -> Call:
    return onnx_call(export_onnx(exported(model, x)), threads)


def exported(
    model: nn.Module, x: Tensor, *, any_batch: bool = False
) -> torch.export.ExportedProgram:
    """The graph of a network in eval mode, for images like ``x`` or, of at least 2, any number."""
    shapes = ({0: torch.export.Dim("batch", min=1)},) if any_batch else None
    with torch.no_grad():
        return torch.export.export(model, (x,), dynamic_shapes=shapes)


def export_onnx(program: torch.export.ExportedProgram) -> bytes:
    """An ONNX file."""
    found = torch.onnx.export(program, dynamo=True, verbose=False)
    assert found is not None
    return bytes(found.model_proto.SerializeToString())


def onnx_call(content: bytes, threads: int) -> Call:
    """Run an ONNX file with one input and one output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The threads of one network must not keep the cores busy while another one is measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry(EXACT_INT8, "1")
    options.log_severity_level = 4  # its errors are raised as well
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@functools.cache
def openvino_core() -> openvino.Core:
    """The only one of the process, and never given up.

    Its CPU plugin installs a signal stack and puts the earlier one back when it is unloaded. Of two
    plugins the later one puts back the first one's, which may be unloaded and its memory gone: the
    next signal that Python handles, a ctrl-C say, ends the process (seen with OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


def _openvino(model: nn.Module, x: Tensor, precision: str, threads: int) -> Call:
    return openvino_call(export_openvino(exported(model, x)), precision, threads)


def export_openvino(program: torch.export.ExportedProgram) -> openvino.Model:
    """A network of OpenVINO, with the sizes that the graph knows; its converter forgets them."""
    import openvino

    model = openvino.convert_model(program)
    (x,) = (n for n in program.graph.nodes if n.name in program.graph_signature.user_inputs)
    model.reshape([size if isinstance(size, int) else -1 for size in x.meta["val"].shape])
    return model


def openvino_call(model: openvino.Model, precision: str, threads: int) -> Call:
    """Run a network of OpenVINO with one input and one output."""
    compiled = openvino_core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        },
    )
    request = compiled.create_infer_request()

    def call(x: Tensor) -> Tensor:
        request.infer([x.numpy()], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor().data.copy())

    return call


def _packages(*names: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        return None if all(importlib.util.find_spec(name) for name in names) else INSTALL

    return missing


def _no_compiler() -> str | None:
    """torch.compile writes C++ for the CPU and needs a compiler for it."""
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return None if any(name and shutil.which(name) for name in names) else "apt-get install g++"


def _openvino_has_bf16() -> bool:
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


RUNTIMES: dict[str, Runtime] = {
    "eager": Runtime(_eager),
    "fused": Runtime(_fused),
    "compiled": Runtime(_compiled, _no_compiler),
    "frozen": Runtime(_frozen, _no_compiler),
    "onnxruntime": Runtime(
        _onnxruntime,
        _packages("onnx", "onnxscript", "onnxruntime"),
        precisions=("fp32",),
        devices=("cpu",),
        own_format=True,
    ),
    "openvino": Runtime(_openvino, _packages("openvino"), devices=("cpu",), own_format=True),
}
