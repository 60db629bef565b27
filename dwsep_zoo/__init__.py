"""A laboratory for depthwise separable convolution."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dwsep_zoo.acceleration import accelerate
    from dwsep_zoo.analysis.count import Count, count
    from dwsep_zoo.analysis.latency import (
        Latency,
        LatencyComparison,
        compare_latency,
        measure_latencies,
        measure_latency,
    )
    from dwsep_zoo.analysis.optimise import Optimised, optimise
    from dwsep_zoo.artefacts import Artefact, open_artefact
    from dwsep_zoo.errors import UserError
    from dwsep_zoo.functions import predict, train
    from dwsep_zoo.models import list_models
    from dwsep_zoo.nn import create_conv, list_convs
    from dwsep_zoo.report.compare import compare
    from dwsep_zoo.weights import load
    from dwsep_zoo.zoo import create_model

__version__ = "0.1.0"

__all__ = [
    "Artefact",
    "Count",
    "Latency",
    "LatencyComparison",
    "Optimised",
    "UserError",
    "accelerate",
    "compare",
    "compare_latency",
    "count",
    "create_conv",
    "create_model",
    "list_convs",
    "list_models",
    "load",
    "measure_latencies",
    "measure_latency",
    "open_artefact",
    "optimise",
    "predict",
    "train",
]

_MODULES = {
    "Artefact": "artefacts",
    "Count": "analysis.count",
    "Latency": "analysis.latency",
    "LatencyComparison": "analysis.latency",
    "Optimised": "analysis.optimise",
    "UserError": "errors",
    "accelerate": "acceleration",
    "compare": "report.compare",
    "compare_latency": "analysis.latency",
    "count": "analysis.count",
    "create_conv": "nn",
    "create_model": "zoo",
    "list_convs": "nn",
    "list_models": "models",
    "load": "weights",
    "measure_latencies": "analysis.latency",
    "measure_latency": "analysis.latency",
    "open_artefact": "artefacts",
    "predict": "functions",
    "train": "functions",
    "optimise": "analysis.optimise",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, as PyTorch takes seconds to load."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
