"""The documentation: its outputs are those of the code, and its commands can be typed."""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
import yaml

from dwsep_zoo import cli, count, create_model, list_convs, list_models
from dwsep_zoo.analysis.arithmetic import conv_costs
from dwsep_zoo.config import compose_jobs, read_line
from dwsep_zoo.schema.settings import parse_settings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FENCE = re.compile(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Title and text of the fenced blocks of a page."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(title, text) for kind, title, text in found if kind == language]


def commands() -> list[str]:
    """Lines of the shell blocks of all pages, and trainings quoted within the text."""
    pages = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    lines = [line for page in pages for _, text in blocks(page, "sh") for line in text.splitlines()]
    for page in pages:
        lines += re.findall(r"`(python train\.py [^`\n]+)`", page.read_text(encoding="utf-8"))
    return sorted({line for line in lines if line})


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE, PICTURES = load("make"), load("pictures")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_shown_output_is_what_the_code_prints(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- end -->") == len(MAKE.BLOCK.findall(text))
    assert MAKE.renewed(text) == text, "python docs/make.py renews it"


@pytest.mark.parametrize("name", PICTURES.operators())
def test_pictures_are_what_the_code_draws(name: str) -> None:
    svg = PICTURES.draw(name)
    assert (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8") == svg
    costs = {cost.name: cost.weights for cost in conv_costs(3, 3, 3)}
    (weights,) = [costs[key] for key in (name.replace("_", " "), f"{name} alone") if key in costs]
    squares = ET.fromstring(svg).findall("{*}rect[@class='weight']")
    assert len(squares) == weights


def test_every_picture_is_drawn_and_shown() -> None:
    shown = {
        m for page in PAGES for m in re.findall(r"\]\(pictures/(\w+)\.svg\)", page.read_text())
    }
    files = {path.stem for path in (DOCS / "pictures").iterdir()}
    assert shown == files == set(PICTURES.operators())


class Parsed(Exception):
    """A command line was read, and nothing done."""


@pytest.mark.parametrize("command", commands())
def test_commands_can_be_typed(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Groups, names, keys and values exist; nothing is trained or measured."""
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(command, comments=True)
    if program == "pip":
        project = (ROOT / "pyproject.toml").read_text()
        for extra in re.findall(r"\[(\w+)\]", command):
            assert f"\n{extra} = [" in project
        return
    if program == "tensorboard":
        return
    if program == "docker":
        options = [arguments[i + 1] for i, word in enumerate(arguments) if word == "-f"]
        assert all((ROOT / option).is_file() for option in options)
        return
    if program == "python":
        script = arguments.pop(0)
        if script.startswith("benchmarks/"):
            assert (ROOT / script).is_file()
            assert not arguments
            return
        assert script == "train.py"
        line = read_line([word for word in arguments if not word.startswith("-")])
        assert all(parse_settings(job.config) for job in compose_jobs(line))
        return
    assert program == "dwsep"
    command_module = {"bench": "profile"}.get(arguments[0], arguments[0].replace("-", "_"))
    module = import_module(f"dwsep_zoo.commands.{command_module}")
    read = module.read

    def stop(*given: Any, **options: Any) -> Any:
        raise Parsed(*read(*given, **options))

    monkeypatch.setattr(module, "read", stop)
    with pytest.raises(Parsed) as parsed:
        cli.main(arguments)
    words, options = parsed.value.args
    for key, names in (("model", list_models()), ("conv", list_convs())):
        value = getattr(options, key, None) or ()
        assert ({value} if isinstance(value, str) else set(value)) <= set(names)
    if arguments[0] == "list":
        assert all(list_models(word) for word in words)


def test_the_commands_are_found() -> None:
    found = commands()
    assert any(line.startswith("python train.py -m ") for line in found)
    assert {line.split()[1] for line in found if line.startswith("dwsep ")} >= {
        "compare",
        "explain",
        "list",
        "profile",
    }


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_python_runs(page: Path) -> None:
    """Blocks without a title, which are parts of files; those of a page in one namespace."""
    namespace: dict[str, Any] = {}
    for title, text in blocks(page, "python"):
        if not title:
            exec(compile(text, page.name, "exec"), namespace)
    sessions = "\n".join(text for _, text in blocks(page, "pycon"))
    test = doctest.DocTestParser().get_doctest(sessions, {}, page.name, None, None)
    report: list[str] = []
    doctest.DocTestRunner().run(test, out=report.append)
    assert not report, "".join(report)


def test_a_conv_type_is_added_as_described(tmp_path: Path) -> None:
    """In a copy of the project: the function, the registry, the YAML, the closed forms."""
    page = DOCS / "conv_type.md"
    parts = dict(blocks(page, "python")) | dict(blocks(page, "yaml"))
    for name in ("dwsep_zoo", "configs", "tests/nn"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/conftest.py", "tests/helpers.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)

    def insert(name: str, before: str, text: str) -> None:
        path = tmp_path / name
        assert path.read_text().count(before) == 1
        path.write_text(path.read_text().replace(before, text + before))

    conv, tests = "dwsep_zoo/nn/conv.py", "tests/nn/test_conv.py"
    insert(conv, "CONVS: dict[", parts[conv] + "\n\n")
    insert(conv, ")\n}\n\n_CONTRACT", ", depthwise_spatial")
    configuration = "configs/conv/depthwise_spatial.yaml"
    (tmp_path / configuration).write_text(parts[configuration])
    insert(tests, '    "standard": lambda k, m, n:', parts[f"{tests}, WEIGHTS"])
    insert(tests, '    "blueprint": lambda k, m, n, h, s:', parts[f"{tests}, MACS"])

    networks = ("mobilenet_v1", "mobilenet_v3_small", "xception")
    program = f"""
import pytest
from dwsep_zoo.cli import main
from dwsep_zoo.config import compose_settings
compose_settings(["conv=depthwise_spatial", "conv.mid=none"])
for name in {networks}:
    main(["explain", f"model={{name}}", "conv=depthwise_spatial"])
raise SystemExit(pytest.main([
    "{tests}", "-n0", "-p", "no:cacheprovider", "-k", "depthwise_spatial and closed_form",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # hydra, a plugin too, is imported already
]))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3*1*64 + 1*3*64 + 64*128 = 8,576" in done.stdout  # MobileNetV1's second unit
    assert done.stdout.count("conv=depthwise_spatial, width 1") == len(networks)
    assert "3 passed" in done.stdout


def test_the_readme_counts_table_4_as_the_code_does() -> None:
    """Parameters and multiply-adds of both conv types, to the last digit."""
    shown = re.findall(r"\d+(?:,\d{3}){2,}", (ROOT / "README.md").read_text(encoding="utf-8"))
    with torch.device("meta"):  # shapes without numbers
        models = [create_model("mobilenet_v1", conv=c) for c in ("standard", "depthwise_separable")]
    counts = [count(model, (3, 224, 224)) for model in models]
    assert shown == [f"{n:,}" for cost in counts for n in (cost.params, cost.macs)]


def test_the_readme_lists_every_conv_type() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)`(?: \(default\))? \|", text, re.MULTILINE)) == sorted(
        list_convs()
    )


def test_every_page_is_in_the_navigation() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = [page for entry in site["nav"] for page in entry.values()]
    assert sorted(pages) == [page.name for page in PAGES]
