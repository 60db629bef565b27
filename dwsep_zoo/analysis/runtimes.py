"""What runs a network: PyTorch itself, PyTorch's compiler, and the runtimes that people ship."""

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

from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.nn.fuse import fold_norms

if TYPE_CHECKING:
    import openvino

INSTALL = 'pip install "dwsep-zoo[runtimes]"'
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
    """How networks are run.

    Attributes:
        prepare: of a network in eval mode, an input ``(N, C, H, W)``, the precision and the number
            of threads: what runs it. The network is ours to change.
        missing: why it cannot be used here, as the line that installs it; ``None`` if it can.
        precisions: those it computes in.
        devices: those it runs on.
        own_format: whether it lays tensors out as it likes.
    """

    prepare: Callable[[nn.Module, Tensor, str, int], Call]
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
) -> Inference:
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
    dtype, layout = tensors_for(runtime, precision, memory_format)
    x = random_input(batch_size, input_size).to(device=device, dtype=dtype)
    x = x.to(memory_format=layout)
    call = prepare_for(
        model,
        x,
        threads=threads,
        runtime=runtime,
        precision=precision,
        memory_format=memory_format,
    )
    return lambda: call(x)


def prepare_for(
    model: nn.Module,
    x: Tensor,
    *,
    threads: int = 1,
    runtime: str = "eager",
    precision: str = "fp32",
    memory_format: str = "channels_last",
) -> Call:
    """A call that runs a copy of ``model`` on tensors like ``x``; ``model`` stays as it is.

    ``x`` is of the type and layout that the runtime computes in, and so is the input of the call,
    which is to be made in torch's inference mode.
    """
    dtype, layout = tensors_for(runtime, precision, memory_format)
    network = copy.deepcopy(model).eval()
    network.to(device=x.device, dtype=dtype).to(memory_format=layout)
    return RUNTIMES[runtime].prepare(network, x, precision, threads)


def tensors_for(
    runtime: str, precision: str, memory_format: str = "channels_last"
) -> tuple[torch.dtype, torch.memory_format]:
    """Type and layout of the tensors that a runtime is given."""
    # A runtime with a layout of its own has a precision option of its own, too.
    if RUNTIMES[runtime].own_format:
        return torch.float32, torch.contiguous_format
    return DTYPES[precision], MEMORY_FORMATS[memory_format]


def random_input(batch_size: int, input_size: Sequence[int]) -> Tensor:
    """Always the same ``(N, C, H, W)``, and none of the random numbers that a run is seeded for."""
    return torch.randn(batch_size, *input_size, generator=torch.Generator().manual_seed(0))


def _eager(model: nn.Module, x: Tensor, precision: str, threads: int) -> Call:
    return model


def _fused(model: nn.Module, x: Tensor, precision: str, threads: int) -> Call:
    fold_norms(model, x.shape[1:])
    return model


def _compiled(model: nn.Module, x: Tensor, precision: str, threads: int, **options: Any) -> Call:
    # All networks share the code of one forward, and PyTorch keeps 8 compilations of a piece of
    # code by default. fullgraph: beyond the limit it fails, and does not go on uncompiled.
    compiled = torch.compile(model, fullgraph=True, dynamic=False, options=options)
    with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=1000):
        compiled(x)
    return compiled


def _frozen(model: nn.Module, x: Tensor, precision: str, threads: int) -> Call:
    """Weights as constants: norms are folded and weights are laid out once, for oneDNN."""
    return _compiled(model, x, precision, threads, freezing=True)


def _onnxruntime(model: nn.Module, x: Tensor, precision: str, threads: int) -> Call:
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
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@functools.cache
def _openvino_core() -> openvino.Core:
    """The only one of the process, and never given up.

    Its CPU plugin installs a signal stack and puts the earlier one back when it is unloaded. Of two
    plugins the later one puts back the first one's, which may be unloaded and its memory gone: the
    next signal that Python handles, a ctrl-C say, ends the process (seen with OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


def _openvino(model: nn.Module, x: Tensor, precision: str, threads: int) -> Call:
    import openvino

    with torch.no_grad():
        program = torch.export.export(model, (x,))
    compiled = _openvino_core().compile_model(
        openvino.convert_model(program),
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
    return "BF16" in _openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


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
