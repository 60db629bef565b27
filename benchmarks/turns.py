"""Times of one image in several files, in turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from dwsep_zoo import Artefact
from dwsep_zoo.analysis.device import torch_threads
from dwsep_zoo.analysis.latency import time_runs
from dwsep_zoo.analysis.runtimes import Call
from dwsep_zoo.artefacts.evaluate import conditions

PATIENCE_S = 60


def milliseconds(calls: Sequence[Call], like: Artefact, seconds: float) -> list[float]:
    """The median time of each call on one image, measured with the threads of an artefact.

    Args:
        calls: of networks with its input.
        like: one of the artefacts.
        seconds: for each call, longer where its times are unsteady.
    """
    x = torch.zeros(1, *like.input_size)
    with torch_threads(like.threads), torch.inference_mode():
        runs = [partial(call, x) for call in calls]
        timings = time_runs(runs, conditions(like, 1), seconds, patience=PATIENCE_S)
    return [timing.latency.p50_ms or math.nan for timing in timings]
