"""Files of ExecuTorch, PyTorch's runtime for phones and small devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dwsep_zoo.analysis.runtimes import Call
from dwsep_zoo.artefacts.quiet import quiet
from dwsep_zoo.errors import UserError, first_line, install_line
from dwsep_zoo.schema.artefact import KEY, Description, read_description

INSTALL = install_line("executorch")


def write(program: torch.export.ExportedProgram, about: Description) -> dict[str, bytes]:
    """A ``.pte`` file for XNNPACK; its description is the output of a second method."""
    text = torch.frombuffer(bytearray(about.to_json().encode()), dtype=torch.uint8)
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={KEY: text}
        )
        return {".pte": bytes(lowered.to_executorch().buffer)}


def read(path: Path, threads: int) -> tuple[Description, Call, list[list[int]]]:
    """The description of a file, its call, and the sizes of its input and output."""
    with quiet():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime, Verification

    # The only way to set it; it holds for all files of the process.
    portable_lib._unsafe_reset_threadpool(threads)
    try:
        program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
        network = program.load_method("forward")
        method = program.load_method(KEY) if KEY in program.method_names else None
        text = bytes(method.execute([])[0].numpy()).decode() if method else None
        about = network.metadata
        counts = about.num_inputs(), about.num_outputs()
        tensors = about.input_tensor_meta(0), about.output_tensor_meta(0)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = first_line(error)
        raise UserError(f"{path}: damaged, or not a file of ExecuTorch: {reason}") from error
    if counts != (1, 1):
        raise UserError(f"{path}: has not one input and one output")

    def call(x: Tensor) -> Tensor:
        outputs: Sequence[Tensor] = network.execute([x.contiguous()])
        return outputs[0].clone()  # of memory that the next call writes into

    return read_description(text, str(path)), call, [list(tensor.sizes()) for tensor in tensors]
