"""Time of one image in int8 against bfloat16, both in OpenVINO: MobileNetV1, V2, V3-Large at 224.

Times do not depend on values: the networks have random weights, and are calibrated with pictures of
noise. The bars are what OpenVINO's own quantiser gave at first. It needs a processor that computes
in bfloat16 and with int8 products.

    python benchmarks/int8_speed.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from record import Ratio, Record, finish, machine, parse, parser
from turns import milliseconds

from dwsep_zoo import create_model, open_artefact
from dwsep_zoo.analysis.runtimes import openvino_call, openvino_core
from dwsep_zoo.artefacts import export
from dwsep_zoo.hub import save_pretrained
from dwsep_zoo.quantise import quantise

BARS = {"mobilenet_v1": 0.70, "mobilenet_v2": 0.80, "mobilenet_v3_large": 0.92}
PICTURES, SIDE = 8, 224
FLOATS = ("bf16", "fp32")


def ratio(name: str, seconds: float) -> Ratio:
    """Median times of one image, taken in turns."""
    torch.manual_seed(0)
    noise = np.random.default_rng(0).integers(0, 256, (PICTURES, SIDE, SIDE, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as made:
        folder, pictures = Path(made), list(noise)
        save_pretrained(create_model(name), folder / "network")
        source = open_artefact(folder / "network")
        exported, small = folder / "float.xml", folder / "int8.xml"
        export(source, "openvino", exported, pictures=pictures)
        quantise(source, "openvino", small, calibration=PICTURES - 2, pictures=pictures)
        int8 = open_artefact(small)
        network = openvino_core().read_model(exported)
        calls = [openvino_call(network, precision, int8.threads) for precision in FLOATS]
        bf16, fp32, own = milliseconds([*calls, int8.call], int8, seconds)
    figures = {"bf16 ms": bf16, "fp32 ms": fp32, "int8 ms": own, "int8 / fp32": own / fp32}
    return Ratio(name, own / bf16, BARS[name], figures, at_most=True)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=3.0, help="of timing a file")
    arguments = parse(options)
    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        sys.exit("this processor does not compute in bfloat16")
    ratios = []
    for name in BARS:
        ratios.append(ratio(name, arguments.seconds))
        print(ratios[-1], flush=True)
    claim = "One image in int8 against bfloat16, in OpenVINO"
    conditions = f"Median times at {SIDE} pixels, batch 1, in turns. {machine()}"
    record = Record("int8_speed", claim, conditions, ratios, arguments.arguments)
    finish(record, check=arguments.check)


if __name__ == "__main__":
    main()
