"""The contract between Dockerfile, compose file and package. Nothing is built here."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from dwsep_zoo.analysis.runtimes import available_runtimes

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), continued lines joined."""
    text = (ROOT / "docker" / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, arguments) for name, arguments in pairs]


def last(name: str) -> str:
    return [arguments for instruction, arguments in instructions() if instruction == name][-1]


def test_the_image_runs_dwsep_as_an_ordinary_user() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["dwsep"]
    ids = dict(arguments.split("=", 1) for name, arguments in instructions() if name == "ARG")
    assert last("USER") == "$UID:$GID"
    assert int(ids["UID"]) > 0
    assert int(ids["GID"]) > 0
    names = [name for name, _ in instructions()]
    assert "RUN" not in names[names.index("USER") :]


def test_dependencies_are_installed_before_the_source_is_copied() -> None:
    steps = [arguments for name, arguments in instructions() if name in ("COPY", "RUN")]
    copies = [arguments for name, arguments in instructions() if name == "COPY"]
    source = steps.index(". .")
    install = next(i for i, step in enumerate(steps) if "--constraint constraints.txt" in step)
    assert install < source
    assert copies[0].split() == ["pyproject.toml", "constraints.txt", "./"]
    assert steps.index(copies[0]) < install


def test_what_compiling_needs_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    line = available_runtimes()["compiled"]
    assert line is not None
    *command, package = line.split()
    (step,) = (arguments for name, arguments in instructions() if "apt-get" in arguments)
    words = step.split()
    assert command == ["apt-get", "install"]
    assert package in words[words.index("install") :]


def test_what_the_image_is_built_from_reaches_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert kept == {
        "LICENSE",
        "README.md",
        "configs",
        "constraints.txt",
        "dwsep_zoo",
        "pyproject.toml",
    }
    assert all((ROOT / name).exists() for name in kept)


@pytest.mark.parametrize("name", SERVICES)
def test_all_services_share_one_volume_where_the_image_works(name: str) -> None:
    service = SERVICES[name]
    (mount,) = service["volumes"]
    volume, target = mount.split(":")
    assert list(COMPOSE["volumes"]) == [volume]
    assert target == last("WORKDIR") == last("VOLUME")
    assert "user" not in service  # the image's
    context = ROOT / "docker" / service["build"]["context"]
    assert (context / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("name", ["train", "train-gpu"])
def test_training_has_shared_memory_and_trains(name: str) -> None:
    service = SERVICES[name]
    assert service["shm_size"] == "8gb"
    assert service["entrypoint"] == ["dwsep", "train"]
    for override in service["command"]:
        group, value = override.split("=")
        assert (ROOT / "configs" / group / f"{value}.yaml").is_file()


def test_only_the_gpu_service_asks_for_a_gpu_and_only_if_told() -> None:
    with_devices = [name for name, service in SERVICES.items() if "deploy" in service]
    with_profile = [name for name, service in SERVICES.items() if "profiles" in service]
    assert with_devices == with_profile == ["train-gpu"]
    assert SERVICES["train-gpu"]["image"] != SERVICES["train"]["image"]
    assert SERVICES["train-gpu"]["build"]["args"] == {"TORCH_INDEX": ""}


def test_tensorboard_reads_the_runs_and_is_not_open_to_the_network() -> None:
    service = SERVICES["tensorboard"]
    assert service["image"] == SERVICES["train"]["image"]
    assert service["entrypoint"] == ["tensorboard"]
    command = service["command"]
    assert PurePosixPath(command[command.index("--logdir") + 1]) == PurePosixPath("logs")
    assert "--bind_all" in command
    port = command[command.index("--port") + 1]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
