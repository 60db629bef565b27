"""What runs a network: PyTorch itself, PyTorch's compiler, and the runtimes that people ship."""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dwsep_zoo.errors import UserError, choose

INSTALL = 'pip install "dwsep-zoo[runtimes]"'
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEMORY_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}
OWN_FORMAT = "own layout"  # of a runtime that lays tensors out as it likes

Run = Callable[[], Any]
"""Runs one batch and returns the outputs as a tensor or a NumPy array."""


@dataclass(frozen=True)
class Runtime:
    """How networks are run.

    Attributes:
        prepare: of a network in eval mode, its input ``(N, C, H, W)``, the precision and the
            number of threads: what runs it once. The network is ours to change.
        missing: why it cannot be used here, as the line that installs it; ``None`` if it can.
        precisions: those it computes in.
        devices: those it runs on.
        own_format: whether it lays tensors out as it likes.
    """

    prepare: Callable[[nn.Module, Tensor, str, int], Run]
    missing: Callable[[], str | None] = lambda: None
    precisions: tuple[str, ...] = ("fp32", "bf16")
    devices: tuple[str, ...] = ("cpu", "cuda")
    own_format: bool = False


def available_runtimes() -> dict[str, str | None]:
    """Of every runtime ``None`` if it can be used here, else the line that installs it."""
    return {name: runtime.missing() for name, runtime in RUNTIMES.items()}


def check_conditions(
    *,
    runtime: str = "eager",
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    memory_format: str = "channels_last",
    batch_size: int = 1,
    threads: int | None = None,
) -> None:
    """Raises UserError for what cannot be measured here, before any work is done."""
    chosen = RUNTIMES[choose(runtime, RUNTIMES, "runtime")]
    choose(precision, DTYPES, "precision")
    choose(memory_format, MEMORY_FORMATS, "memory_format")
    kind = choose(str(device).split(":")[0], ("cpu", "cuda"), "device")
    for key, value in {"batch_size": batch_size, "threads": threads}.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{key} must be at least 1; got {value!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}: PyTorch finds no CUDA device here")
    if line := chosen.missing():
        raise UserError(f"runtime {runtime!r} is not installed; install it with: {line}")
    if kind not in chosen.devices:
        raise UserError(f"runtime {runtime!r} is measured on {chosen.devices[0]} only; got {kind}")
    if precision not in chosen.precisions:
        raise UserError(
            f"runtime {runtime!r} computes in {', '.join(chosen.precisions)}; got {precision}"
        )
    if runtime == "openvino" and precision == "bf16" and not _openvino_has_bf16():
        raise UserError("runtime 'openvino' computes in fp32 on this processor; got bf16")


def prepare(
    model: nn.Module,
    input_size: Sequence[int],
    *,
    batch_size: int = 1,
    threads: int = 1,
    device: str | torch.device = "cpu",
    runtime: str = "eager",
    precision: str = "fp32",
    memory_format: str = "channels_last",
) -> Run:
    """A call that runs a copy of ``model`` once, on random input; ``model`` stays as it is.

    The call is to be made in torch's inference mode.

    Args:
        model: takes ``(N, C, H, W)``.
        input_size: ``(C, H, W)``.
        batch_size: N.
        threads: CPU threads of the runtimes that have their own; torch has its setting.
        device: ``cpu`` or ``cuda``.
        runtime: one of ``RUNTIMES``.
        precision: ``fp32``, or ``bf16`` for weights and activations alike.
        memory_format: ``channels_last`` or ``contiguous``, where the runtime leaves the choice.
    """
    chosen = RUNTIMES[runtime]
    layout = torch.contiguous_format if chosen.own_format else MEMORY_FORMATS[memory_format]
    # A runtime with its own precision option is given the network in fp32.
    dtype = torch.float32 if chosen.own_format else DTYPES[precision]
    network = copy.deepcopy(model).eval()
    network.to(device=device, dtype=dtype).to(memory_format=layout)
    x = random_input(batch_size, input_size).to(device=device, dtype=dtype)
    return chosen.prepare(network, x.to(memory_format=layout), precision, threads)


def random_input(batch_size: int, input_size: Sequence[int]) -> Tensor:
    """Always the same ``(N, C, H, W)``, and none of the random numbers that a run is seeded for."""
    return torch.randn(batch_size, *input_size, generator=torch.Generator().manual_seed(0))


def _eager(model: nn.Module, x: Tensor, precision: str, threads: int) -> Run:
    return lambda: model(x)


def _compiled(model: nn.Module, x: Tensor, precision: str, threads: int) -> Run:
    # All networks share the code of one forward, and PyTorch keeps 8 compilations of a piece of
    # code by default. fullgraph: beyond the limit it fails, and does not go on uncompiled.
    # Freezing folds the norms into the convolutions, as the other runtimes do.
    compiled = torch.compile(model, fullgraph=True, options={"freezing": True})
    with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=1000):
        compiled(x)
    return lambda: compiled(x)


def _onnxruntime(model: nn.Module, x: Tensor, precision: str, threads: int) -> Run:
    import onnxruntime

    with torch.no_grad():
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The threads of one network must not keep the cores busy while another one is measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, inputs)[0]


def _openvino(model: nn.Module, x: Tensor, precision: str, threads: int) -> Run:
    import openvino

    with torch.no_grad():
        program = torch.export.export(model, (x,))
    compiled = openvino.Core().compile_model(
        openvino.convert_model(program),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        },
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy()))  # a copy: it outlives x

    def run() -> Any:
        request.infer()
        return request.get_output_tensor().data

    return run


def _packages(*names: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        return None if all(importlib.util.find_spec(name) for name in names) else INSTALL

    return missing


def _no_compiler() -> str | None:
    """torch.compile writes C++ for the CPU and needs a compiler for it."""
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return None if any(name and shutil.which(name) for name in names) else "apt-get install g++"


def _openvino_has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


RUNTIMES: dict[str, Runtime] = {
    "eager": Runtime(_eager),
    "compiled": Runtime(_compiled, _no_compiler),
    "onnxruntime": Runtime(
        _onnxruntime,
        _packages("onnx", "onnxscript", "onnxruntime"),
        precisions=("fp32",),
        devices=("cpu",),
        own_format=True,
    ),
    "openvino": Runtime(_openvino, _packages("openvino"), devices=("cpu",), own_format=True),
}
