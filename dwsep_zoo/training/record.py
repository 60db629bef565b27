"""``result.json``: the one record of a run that every report reads."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dwsep_zoo.analysis.latency import device_name

PACKAGES = ("dwsep-zoo", "torch", "torchvision", "lightning", "hydra-core", "timm", "numpy")


class Record:
    """A dictionary that is written to ``folder/result.json`` at every change, or not at all."""

    def __init__(self, folder: Path, *, enabled: bool = True):
        self.path = folder / "result.json"
        self.enabled = enabled
        self.values: dict[str, Any] = {"schema": 1, "status": "running", "error": None}

    def update(self, **values: Any) -> None:
        self.values.update(values)
        if self.enabled:
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(self.values, indent=2) + "\n")
            os.replace(new, self.path)


def now() -> str:
    """The time as ISO 8601 with the offset to UTC."""
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")


def provenance() -> dict[str, Any]:
    """Command, versions, commit and machine."""
    gpu = torch.cuda.is_available()
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "git_commit": _git_commit(),
        "machine": {
            "cpu": device_name(torch.device("cpu")),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": device_name(torch.device("cuda")) if gpu else None,
            "system": platform.platform(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None


def _git_commit() -> str | None:
    """The commit of the checkout that this runs from, with ``+`` if files differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        tracked = git("ls-files", Path(__file__).name)
        if not tracked:  # installed inside somebody else's repository
            return None
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return None
