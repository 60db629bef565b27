"""``dwsep COMMAND``, with options as in ``train.py``: ``key=value``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from dwsep_zoo.errors import UserError, choose, say
from dwsep_zoo.signals import stopping
from dwsep_zoo.terminal import escape_names

COMMANDS = (
    *("train", "compare", "inspect", "predict", "eval", "export", "export-weights"),
    *("quantise", "demo", "add-latency", "list", "explain", "profile", "bench", "data", "recipe"),
    *("lr-find", "doctor"),
)
USAGE = """\
usage: dwsep COMMAND [key=value ...]

  dwsep train model=mobilenet_v1 conv=standard     train a network
  dwsep compare logs [by=conv] [model=xception]    report on all runs below a folder
  dwsep inspect RUN                                draw the pictures of a run again
  dwsep predict ARTEFACT picture.jpg               classes of pictures, folders, addresses
  dwsep eval ARTEFACT data=cifar10                 test a run or an exported file
  dwsep demo ARTEFACT [ARTEFACT ...]               a local page: drop, paste or draw a picture
  dwsep export RUN format=onnx                     write onnx, openvino, executorch ...; all
  dwsep quantise RUN to=openvino                   write int8 for openvino, onnx ...; --diagnose
  dwsep add-latency RUN p50_ms=3.2 device=phone    a time that was measured elsewhere
  dwsep export-weights RUN to=timm out=FILE        a run's weights for timm or torchvision
  dwsep list ['efficientnet*'] [conv=standard]     models: parameters, MACs, published weights
  dwsep explain in=3 out=3 kernel=3                the arithmetic of one convolution
  dwsep explain model=mobilenet_v1 [conv=standard] a network layer by layer
  dwsep profile model=mobilenet_v2 [--roofline]    latency by runtime, memory, bottlenecks
  dwsep bench model=mobilenet_v2 [conv=standard]   every runtime, for one image and for 32
  dwsep data check pictures/                       unreadable, repeated and odd pictures
  dwsep data show data=imagenette                  training pictures as the network gets them
  dwsep data pack pictures/ to=packed              large files for training; format=map
  dwsep recipe recipe=mobilenet_v2_paper           learning rates and sizes, without training
  dwsep lr-find model=mobilenet_v2 data=cifar10    which learning rate? a short test of many
  dwsep doctor                                     this machine, and what is slow on it

ARTEFACT: a run's folder, a checkpoint, a name of published weights, .onnx .xml .pt2 .pte .tflite

dwsep COMMAND --help prints the options of a command.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; on wrong input print one line and exit with code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    name, *rest = arguments
    escape_names()
    try:
        choose(name, COMMANDS, "command")
        if name == "bench":
            name, rest = "profile", ["runtimes=all", "batch_size=1,32", *rest]
        with stopping():
            import_module(f"dwsep_zoo.commands.{name.replace('-', '_')}").run(rest)
    except UserError as error:
        say(error)
        sys.exit(2)
