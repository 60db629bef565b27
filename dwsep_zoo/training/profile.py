"""What is measured of trained networks: latency, memory and the time of each layer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dwsep_zoo.analysis.latency import measure_latencies
from dwsep_zoo.analysis.memory import inference_memory, training_memory
from dwsep_zoo.analysis.roofline import measure_roofline
from dwsep_zoo.analysis.runtimes import RUNTIMES, check_conditions
from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.zoo import create_model
from dwsep_zoo.training.record import now

KEYS = ("runtimes", "batch_sizes", "precisions", "roofline")


def check_profile(options: Mapping[str, Any]) -> None:
    """Raises UserError for options that cannot work, and for runtimes that are not installed."""
    for key in options:
        choose(key, KEYS, "key of profile")
    for key in ("runtimes", "precisions", "batch_sizes"):
        if not isinstance(options[key], list) or not options[key]:
            raise UserError(f"profile.{key} must be a list of one or more; got {options[key]!r}")
    for runtime in options["runtimes"]:
        for precision in options["precisions"]:
            for batch_size in options["batch_sizes"]:
                check_conditions(runtime=runtime, precision=precision, batch_size=batch_size)


def profile(
    models: Mapping[str, nn.Module],
    input_size: Sequence[int],
    options: Mapping[str, Any],
    device: torch.device,
    *,
    train_batch_size: int,
) -> list[dict[str, Any]]:
    """Measure networks in turns.

    Args:
        models: by a name.
        input_size: ``(C, H, W)`` of an image.
        options: the ``profile`` group of the configuration.
        device: where they were trained; latency is measured there and on the CPU.
        train_batch_size: images of a training step, for its memory.

    Returns:
        Of each network ``latency``, ``memory`` and ``roofline`` as they stand in ``result.json``.
    """
    results: list[dict[str, Any]] = [
        {
            "latency": [],
            "memory": {
                "inference_mb": inference_memory(model, input_size) / 1e6,
                "training_mb": training_memory(model, input_size, batch_size=train_batch_size)
                / 1e6,
                "batch_size": train_batch_size,
            },
            "roofline": None,
        }
        for model in models.values()
    ]
    devices = [torch.device("cpu")] + ([device] if device.type == "cuda" else [])
    for place in devices:
        for runtime in options["runtimes"]:
            if place.type not in RUNTIMES[runtime].devices:
                continue
            for precision in options["precisions"]:
                for batch_size in options["batch_sizes"]:
                    times = measure_latencies(
                        models,
                        input_size,
                        batch_size=batch_size,
                        device=place,
                        runtime=runtime,
                        precision=precision,
                    )
                    for result, name in zip(results, models, strict=True):
                        result["latency"].append(asdict(times[name]))
    if options["roofline"]:
        roofline = measure_roofline(models, input_size, device=devices[-1])
        for result, network in zip(results, roofline.networks, strict=True):
            alone = asdict(replace(roofline, networks=(network,)))
            result["roofline"] = json.loads(json.dumps(alone))  # lists for tuples
    return results


def profile_side_by_side(folder: Path) -> None:
    """Measure the networks of a sweep once more, in turns, and put that into their records.

    There ``in_turns`` is the time, the same for all that were measured together.

    What was measured at the end of each run was measured minutes or hours apart, on a machine that
    may have been doing other things.

    Args:
        folder: of runs; those that have not finished and damaged records are left as they are.
    """
    records: dict[Path, dict[str, Any]] = {}
    groups: dict[str, dict[str, list[Path]]] = {}
    for file in sorted(folder.glob("*/result.json")):
        try:
            record = json.loads(file.read_text())
            if record["status"] != "finished":
                continue
            batch_size = record["config"]["data"]["batch_size"]
            same = json.dumps([record["input_size"], record["config"]["profile"], batch_size])
            network = json.dumps(record["network"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the report names what is damaged
        records[file] = record
        groups.setdefault(same, {}).setdefault(network, []).append(file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for same, networks in groups.items():
        if len(networks) == 1:
            continue
        input_size, options, batch_size = json.loads(same)
        begun = now()
        print(f"\nmeasuring the {len(networks)} networks in turns")
        models = {network: create_model(**json.loads(network)).eval() for network in networks}
        costs = profile(models, input_size, options, device, train_batch_size=batch_size)
        for files, cost in zip(networks.values(), costs, strict=True):
            for file in files:
                record = records[file]
                record.update(latency=cost["latency"], roofline=cost["roofline"], in_turns=begun)
                new = file.with_suffix(".new")
                new.write_text(json.dumps(record, indent=2) + "\n")
                os.replace(new, file)
