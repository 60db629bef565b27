"""``dwsep doctor``: this machine, its runtimes, and whether the detours are needed on it."""

from __future__ import annotations

import os
import platform

from dwsep_zoo.commands.arguments import Arguments, read


class DoctorArguments(Arguments):
    """Examine this machine; there are no options."""


def run(arguments: list[str]) -> None:
    read("doctor", arguments, DoctorArguments)
    from rich.table import Table

    from dwsep_zoo.analysis.doctor import detours, examine
    from dwsep_zoo.analysis.runtimes import available_runtimes
    from dwsep_zoo.terminal import stdout_console

    console = stdout_console()
    machine = Table(title="this machine", show_header=False)
    for key, value in _machine().items():
        machine.add_row(key, value)
    for runtime, line in available_runtimes().items():
        machine.add_row(f"runtime {runtime}", "ready" if line is None else f"absent; {line}")
    console.print(machine)
    found = Table(
        title="training on the CPU: PyTorch's own operators against ours",
        caption="gain: PyTorch's time over ours, median [99 % interval]; for a layer of 128 "
        "channels, 28 x 28 pixels unless said, 16 images",
        caption_justify="left",
    )
    found.add_column("operator")
    found.add_column("gain", justify="right")
    found.add_column("ours is")
    for detour in detours():
        finding = examine(detour)
        gain = finding.gain
        interval = rf"{gain.ratio:.1f}x \[{gain.low:.1f}, {gain.high:.1f}]"
        found.add_row(finding.name, interval, finding.verdict)
    console.print(found)


def _machine() -> dict[str, str]:
    import torch

    from dwsep_zoo.analysis.device import device_name
    from dwsep_zoo.ops import native

    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    # PyTorch has no public name for the questions about its own matrix units.
    amx, avx512 = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    bf16 = "fast (AMX)" if amx else "fast (AVX-512)" if avx512 else "slower than float32 here"
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return {
        "processor": f"{device_name(cpu)}, {cores} cores, {threads} threads",
        "bfloat16": bf16,
        "norms and depthwise": f"kernels are {native.status()}",
        "GPU": device_name(gpu) if torch.cuda.is_available() else "none that PyTorch can use",
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
    }
