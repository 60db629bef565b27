"""The package's own imports: they point one way, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dwsep_zoo

PACKAGE = Path(dwsep_zoo.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ORDER = (
    *("errors", "terminal", "files", "signals", "schema", "ops", "nn", "acceleration", "models"),
    *(
        "weights",
        "zoo",
        "hub",
        "analysis",
        "data",
        "report",
        "artefacts",
        "quantise",
        "training",
        "sweep",
        "config",
        "functions",
        "commands",
        "cli",
    ),
)
"""From the ground up; a part imports itself and what stands before it."""
FLOORS = (
    {"errors", "terminal", "files", "signals"},
    {"artefacts", "quantise"},  # an artefact has a method that quantises it
)
"""Parts that import each other."""
HOMES = {
    "lightning": {"data", "training"},
    "hydra": {"config"},
    "omegaconf": {"config"},
    "rich": {"terminal", "data", "report", "commands"},
    "matplotlib": {"report", "commands"},
}
"""The only parts that import a library."""
LIBRARIES_OF_SCHEMA = ("torch", "lightning", "hydra", "numpy")
LONGEST_FUNCTION, LONGEST_FILE = 60, 400


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: a relative import"
            module = node.module or ""
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def own_parts(name: str) -> str | None:
    """The part of this package that an import names; ``None`` for the package's own names."""
    package, _, rest = name.partition(".")
    part = rest.split(".")[0]
    return part if package == "dwsep_zoo" and part in ORDER else None


def test_the_order_names_every_part():
    assert {part_of(file) for file in FILES} - {"__init__", "configs"} == set(ORDER)


@pytest.mark.parametrize("part", ORDER)
def test_imports_point_one_way(part):
    beside = set().union(*(floor for floor in FLOORS if part in floor))
    allowed = set(ORDER[: ORDER.index(part) + 1]) | FLOORS[0] | beside
    climbs = [
        f"{file.relative_to(PACKAGE)}:{line} imports {name}"
        for file in FILES
        if part_of(file) == part
        for line, name in imports(file)
        if (own_parts(name) or part) not in allowed
    ]
    assert not climbs


@pytest.mark.parametrize("library", HOMES)
def test_libraries_are_imported_in_their_homes_only(library):
    strays = [
        f"{file.relative_to(PACKAGE)}:{line}"
        for file in FILES
        for line, name in imports(file)
        if name.split(".")[0] == library and part_of(file) not in HOMES[library]
    ]
    assert not strays


def test_nothing_registers_itself_unless_hub_is_imported():
    users = [file for file in FILES for _, name in imports(file) if own_parts(name) == "hub"]
    assert not users


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("dwsep_zoo.schema", LIBRARIES_OF_SCHEMA),
        ("dwsep_zoo.schema.settings, dwsep_zoo.schema.record", LIBRARIES_OF_SCHEMA),
        ("dwsep_zoo", ("torch", "pydantic")),
        ("dwsep_zoo.cli", ("torch", "pydantic", "yaml")),
        ("dwsep_zoo.commands.list", ("torch", "numpy")),
        ("dwsep_zoo.zoo", ("lightning", "hydra", "timm", "pydantic")),
    ],
)
def test_importing_loads_only_what_is_needed(module, absent):
    code = f"import {module}\nimport sys\nprint(*sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_files_fit_into_400_lines():
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    long = [f"{f}: {n}" for f, n in lengths.items() if n > LONGEST_FILE and part_of(f) != "ops"]
    assert not long


def test_functions_fit_into_60_lines():
    """Those of ``ops`` are kernels."""
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    long = [
        f"{file.relative_to(PACKAGE)}: {node.name} has {node.end_lineno - node.lineno + 1}"
        for file in FILES
        if part_of(file) != "ops"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, functions) and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert not long
