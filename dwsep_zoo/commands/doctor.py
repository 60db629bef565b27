"""``dwsep doctor``: this machine, its runtimes, and whether the detours are needed on it."""

from __future__ import annotations

import os
import platform

from dwsep_zoo.commands.arguments import Arguments, read
from dwsep_zoo.terminal import stdout_console, table

OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables that decide how its threads share the cores with other programs."""


class DoctorArguments(Arguments):
    """Examine this machine; there are no options."""


def run(arguments: list[str]) -> None:
    read("doctor", arguments, DoctorArguments)
    from rich.markup import escape

    from dwsep_zoo.analysis.doctor import detours, examine

    console = stdout_console()
    console.print(table("this machine", ("", ""), _machine().items(), show_header=False))
    console.print(
        table(
            "training on the CPU: PyTorch's own operators against ours",
            ("operator", "gain", "ours is"),
            (
                (found.name, escape(found.gain.text(1)), found.verdict)
                for found in map(examine, detours())
            ),
            words=("operator", "ours is"),
            caption="gain: PyTorch's time over ours, median [99 % interval]; for a layer of 128 "
            "channels, 28 x 28 pixels unless said, 16 images",
            caption_justify="left",
        )
    )


def _machine() -> dict[str, str]:
    import torch

    from dwsep_zoo.analysis.device import device_name
    from dwsep_zoo.analysis.neighbours import cores_for
    from dwsep_zoo.analysis.runtimes import available_runtimes
    from dwsep_zoo.ops import native

    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    # PyTorch has no public name for the questions about its own matrix units.
    amx, avx512 = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    bf16 = "fast (AMX)" if amx else "fast (AVX-512)" if avx512 else "slower than float32 here"
    cores, threads = os.cpu_count(), torch.get_num_threads()
    set_here = [f"{key}={os.environ[key]}" for key in OPENMP if key in os.environ]
    return {
        "processor": f"{device_name(cpu)}, {cores} cores, {threads} threads",
        "neighbours": f"other programs leave {cores_for(threads):.1f} of {threads} cores",
        "OpenMP": ", ".join(set_here) or "as it comes",
        "bfloat16": bf16,
        "norms and depthwise": f"kernels are {native.status()}",
        "GPU": device_name(gpu) if torch.cuda.is_available() else "none that PyTorch can use",
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        **{
            f"runtime {runtime}": "ready" if line is None else f"absent; {line}"
            for runtime, line in available_runtimes().items()
        },
    }
