"""What is shipped, what is declared, and whether the standing documents agree with the files."""

from __future__ import annotations

import ast
import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import dwsep_zoo

ROOT = Path(__file__).resolve().parent.parent
PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+")
RUNTIMES = ("executorch", "litert", "quantise", "runtimes")
TRACKERS = ("mlflow", "trackio", "wandb")
EXTRAS = ("docs", "hf", "keras", "search", "weights", *RUNTIMES, *TRACKERS)
DISTRIBUTIONS = {
    "ai_edge_litert": "ai-edge-litert",
    "litert_torch": "litert-torch",
    "pydantic_core": "pydantic-core",
    "PIL": "pillow",
    "huggingface_hub": "huggingface-hub",
    "hydra": "hydra-core",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def files_below(folder: str, pattern: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)}


def build(source: Path, target: str, folder: Path) -> Path:
    """Build a wheel or an sdist as pip does, with the build backend that is installed."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what installing the wheel puts into site-packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def metadata(site: Path) -> email.message.Message:
    (info,) = site.glob("*.dist-info")
    return email.message_from_string((info / "METADATA").read_text(encoding="utf-8"))


def requirements(site: Path, extra: str | None = None) -> list[Requirement]:
    """Those that always hold, or those of an extra only."""
    every = [Requirement(line) for line in metadata(site).get_all("Requires-Dist", [])]
    if extra is None:
        return [r for r in every if r.marker is None]
    chosen = [r for r in every if r.marker is not None and r.marker.evaluate({"extra": extra})]
    return [r for r in chosen if r.name != "dwsep-zoo"]  # dev takes other extras in


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.partition("==")[::2] for line in lines if line and not line.startswith("#")]
    return dict(pairs)


def run_from(site: Path, folder: Path, *arguments: str) -> str:
    """Run the command line of the unpacked wheel in a folder and return what it prints."""
    code = "import sys; from dwsep_zoo.cli import main; main(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_the_package_and_every_configuration(site: Path) -> None:
    shipped = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    configs = {f"dwsep_zoo/{path}" for path in files_below("configs", "*.yaml")}
    kinds = ("*.py", "*.cpp", "*.typed", "*.jinja", "*.css", "*.js")
    weights = ("*.safetensors", "*.json", "*.md")
    package = set().union(*(files_below("dwsep_zoo", kind) for kind in (*kinds, *weights)))
    assert {path for path in shipped if ".dist-info/" not in path} == configs | package


def test_a_wheel_made_from_the_sdist_is_the_same(site: Path, tmp_path: Path) -> None:
    sdist = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path, filter="data")
    top = names[0].split("/")[0]
    assert {f"{top}/tests/test_packaging.py", f"{top}/train.py"} <= set(names)
    again = build(tmp_path / top, "wheel", tmp_path / "wheel")
    with zipfile.ZipFile(again) as archive:
        for name in archive.namelist():
            assert archive.read(name) == (site / name).read_bytes(), name


def test_the_version_and_the_licence_are_stated_once(site: Path) -> None:
    meta = metadata(site)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert meta["Version"] == dwsep_zoo.__version__ == str(citation["version"])
    assert meta["License-Expression"] == citation["license"] == "Apache-2.0"
    assert f" {dwsep_zoo.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    (info,) = site.glob("*.dist-info")
    licence = (info / "licenses" / "LICENSE").read_text()
    assert licence == (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in licence


def test_from_any_folder_the_installed_package_finds_its_configuration(
    site: Path, tmp_path: Path
) -> None:
    before = set(site.rglob("*"))
    shown = run_from(site, tmp_path, "train", "conv=standard", "--cfg=job")
    assert yaml.safe_load(shown)["conv"]["name"] == "standard"
    assert set(site.rglob("*")) == before


@pytest.mark.slow
def test_from_an_empty_folder_the_installed_package_trains_there(
    site: Path, tmp_path: Path
) -> None:
    before = set(site.rglob("*"))
    shrunk = ("model.width_mult=0.25", "trainer.max_epochs=1", "trainer=cpu")
    run_from(site, tmp_path, "train", "model=mobilenet_v2", "conv=standard", *shrunk)
    assert len(list(tmp_path.glob("logs/train/runs/*/result.json"))) == 1
    assert set(site.rglob("*")) == before


def test_every_import_is_a_declared_dependency(site: Path) -> None:
    """Also of packages that only happen to be installed because another one needs them."""
    imported = set()
    for path in (ROOT / "dwsep_zoo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    # Triton comes with PyTorch where there is one, and the project does without it elsewhere.
    imported -= {*sys.stdlib_module_names, "dwsep_zoo", "triton"}
    declared = {
        canonicalize_name(requirement.name)
        for extra in (None, *EXTRAS)
        for requirement in requirements(site, extra)
    }
    assert {DISTRIBUTIONS.get(name, name) for name in imported} <= declared


@pytest.mark.parametrize("extra", [None, "dev", *EXTRAS])
def test_the_tested_versions_satisfy_the_requirements(site: Path, extra: str | None) -> None:
    tested = pins()
    needed = requirements(site, extra)
    assert needed
    for requirement in needed:
        assert requirement.specifier, f"{requirement.name} has no lower bound"
        version = tested.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(Version(version)), f"{requirement} {version}"


def test_constraints_are_names_and_versions_in_order() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    rows = [line for line in lines if line and not line.startswith("#")]
    assert [row for row in rows if not PIN.fullmatch(row)] == []
    assert list(pins()) == sorted(pins())


def test_ci_runs_what_the_readme_tells_newcomers() -> None:
    command = "pip install -e '.[dev]' && pytest"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert command in (ROOT / ".ci" / "run").read_text()


def test_ci_and_the_commit_hooks_run_the_same_tools() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = {re.sub(r" --.*", "", hook["entry"]) for hook in hooks}
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    tools = {re.sub(r" --.*", "", line) for line in ci if line.startswith(("ruff", "mypy"))}
    assert tools
    assert tools <= entries


@pytest.mark.parametrize("hook", ["end-of-file-fixer", "trailing-whitespace"])
def test_hooks_leave_recorded_files_as_they_were_written(hook):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (exclude,) = [found["exclude"] for found in hooks if found["id"] == hook]
    for folder in ("benchmarks/results", "tests/runs"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert files
        assert all(re.search(exclude, path.relative_to(ROOT).as_posix()) for path in files)
